#include "shared/compose/compose.hpp"
#include "tests/catch.hpp"

using namespace dstack::compose;
using Words = std::vector<std::string>;

namespace
{

std::string refusal(std::string_view yaml)
{
    const auto app = parse_compose(yaml);
    return app ? std::string{"accepted"} : app.error().message;
}

} // namespace

TEST_CASE("a compose file becomes services in start order")
{
    const auto app = parse_compose(R"(
version: "3.8"
x-common: &common
  image: busybox
  restart: unless-stopped
  environment: {LEVEL: info, DEBUG: 0}
services:
  web:
    <<: *common
    command: httpd -f -p 80 -h "/var/my www"
    working_dir: /var/www
    user: 33:33
    read_only: true
    ports: ["80", 8080:81, "127.0.0.1:9000:90/tcp"]
    tmpfs: /run:size=64m,mode=1777
    volumes: [data:/data:ro]
    depends_on: [db]
    labels: {a: b}
    container_name: w
  db:
    image: registry.example:5000/team/db:1.2
    entrypoint: ["/bin/db", "--flag=$$HOME"]
    command: []
    environment:
      - A=1
      - B=x=y
    restart: on-failure:3
volumes:
  data:
)");
    REQUIRE(app);
    REQUIRE(app->services.size() == 2);
    CHECK(app->volumes == Words{"data"});
    const Service& db = app->services[0];
    CHECK(db.name == "db");
    CHECK(db.image == "registry.example:5000/team/db:1.2");
    CHECK(db.entrypoint == Words{"/bin/db", "--flag=$HOME"});
    CHECK(db.command == Words{});
    CHECK(db.environment == std::vector<std::pair<std::string, std::string>>{{"A", "1"}, {"B", "x=y"}});
    CHECK(db.restart == Restart{Restart::Policy::on_failure, 3});
    const Service& web = app->services[1];
    CHECK(web.image == "docker.io/library/busybox:latest");
    CHECK(web.command == Words{"httpd", "-f", "-p", "80", "-h", "/var/my www"});
    CHECK_FALSE(web.entrypoint);
    CHECK(web.environment == std::vector<std::pair<std::string, std::string>>{{"LEVEL", "info"}, {"DEBUG", "0"}});
    CHECK(web.restart == Restart{Restart::Policy::unless_stopped, 0});
    CHECK(web.ports == std::vector<Port>{{"0.0.0.0", 80, 80}, {"0.0.0.0", 8080, 81}, {"127.0.0.1", 9000, 90}});
    CHECK(web.mounts == std::vector<Mount>{{Mount::Kind::tmpfs, "", "/run", "size=64m,mode=1777", false},
                                           {Mount::Kind::volume, "data", "/data", "", true}});
    CHECK(web.read_only);
    CHECK(web.user == "33:33");
}

TEST_CASE("what the guest would not honour is refused with its place")
{
    struct Row
    {
        std::string_view yaml, message;
    };
    const Row rows[] = {
        {"", "this is not a compose file: a mapping with services: is expected"},
        {"just words", "this is not a compose file: a mapping with services: is expected"},
        {"- a\n", "this is not a compose file: a mapping with services: is expected"},
        {"version: '3'\n", "the compose file has no services"},
        {"services: {}\n", "the compose file has no services"},
        {"services:\n", "the compose file has no services"},
        {"services: [a]\n", "line 1: services: a mapping is expected"},
        {"services:\n  web:\n    image: a\n    privileged: true\n",
         "line 4: service web: the key 'privileged' is not supported"},
        {"services:\n  web:\n    build: .\n", "line 3: service web: the key 'build' is not supported"},
        {"services:\n  web:\n    ports: []\n", "line 2: service web: it has no image"},
        {"services:\n  web: ~\n", "line 2: service web: a mapping with image: is expected"},
        {"services:\n  web:\n    image: Bad Name\n",
         "line 3: service web: image: the image name 'Bad Name' is not valid"},
        {"networks: {}\nservices: {a: {image: b}}\n", "line 1: top level: the key 'networks' is not supported"},
        {"services:\n  a:\n    image: b\n    image: c\n", "line 4: the key image is there twice"},
        {"services:\n  a: {image: b}\n  a: {image: c}\n", "line 3: the key a is there twice"},
        {"services:\n  a:\n    image: b\n    ports:\n      - 80\n      - 53:53/udp\n",
         "line 6: service a: ports: '53:53/udp': only tcp ports can be published"},
        {"services:\n  a: {image: b, ports: ['0']}\n", "line 2: service a: ports: '0' is not a port"},
        {"services:\n  a: {image: b, ports: ['70000:80']}\n", "line 2: service a: ports: '70000:80' is not a port"},
        {"services:\n  a: {image: b, ports: ['80-90']}\n",
         "line 2: service a: ports: '80-90': port ranges are not supported"},
        {"services:\n  a: {image: b, ports: ['10.1.1.1:80:80']}\n",
         "line 2: service a: ports: '10.1.1.1:80:80': the address must be 0.0.0.0 or 127.0.0.1 (of the guest)"},
        {"services:\n  a: {image: b, ports: [{target: 80}]}\n",
         "line 2: service a: ports: the long form is not supported"},
        {"services:\n  a: {image: b, ports: ['80', '8080:80', '80:81']}\n", "service a: ports: 80 is published twice"},
        {"services:\n  a: {image: b, ports: ['80']}\n  b: {image: b, ports: ['8080:80']}\n",
         "service b: ports: 80 is taken by service a"},
        {"services:\n  a: {image: b, ports: ['80:8080', '8080:81']}\n",
         "service a: ports: 8080 is both published and listened on inside"},
        {"services:\n  a: {image: b, volumes: ['./x:/y']}\n",
         "line 2: service a: volumes: './x:/y': the guest has no files of the host to mount"},
        {"services:\n  a: {image: b, volumes: ['/etc:/y']}\n",
         "line 2: service a: volumes: '/etc:/y': the guest has no files of the host to mount"},
        {"services:\n  a: {image: b, volumes: ['d:/y']}\n",
         "line 2: service a: volumes: the volume 'd' is not declared"},
        {"services:\n  a: {image: b, volumes: ['d:/../y']}\nvolumes: {d: }\n",
         "line 2: service a: volumes: 'd:/../y': an absolute path is expected after the volume's name"},
        {"services:\n  a: {image: b, tmpfs: '/x:bind=/y'}\n",
         "line 2: service a: tmpfs: the tmpfs option 'bind=/y' is not supported"},
        {"services:\n  a: {image: b, tmpfs: [/x, /x]}\n", "line 2: service a: two mounts on /x"},
        {"services:\n  a: {image: b, depends_on: [c]}\n", "service a: depends_on: there is no service 'c'"},
        {"services:\n  a: {image: b, depends_on: [c]}\n  c: {image: b, depends_on: [a]}\n",
         "service a: depends_on: it depends on itself in the end"},
        {"services:\n  a:\n    image: b\n    depends_on: {c: {condition: service_healthy}}\n  c: {image: b}\n",
         "line 4: service a: depends_on: c: the condition 'service_healthy' is not supported"},
        {"services:\n  a: {image: b, restart: sometimes}\n",
         "line 2: service a: restart: 'sometimes' is not a restart policy"},
        {"services:\n  a: {image: b, read_only: 'maybe'}\n",
         "line 2: service a: read_only: true or false is expected, got 'maybe'"},
        {"services:\n  a:\n    image: b\n    environment:\n      - HOME\n",
         "line 4: service a: environment: the variable HOME has no value"},
        {"services:\n  a:\n    image: b\n    environment: {A: }\n",
         "line 4: service a: environment: the variable A has no value"},
        {"services:\n  a:\n    image: b\n    command: echo ${WHO}\n",
         "line 4: service a: command: the variable WHO is not set"},
        {"services:\n  a:\n    image: b\n    command: sh -c 'x\n",
         "line 4: service a: command: a quote ' in the command is not closed"},
        {"services:\n  'a b': {image: b}\n", "line 2: service 'a b': a name has 1 to 63 letters, digits and . _ -"},
        {"services:\n  a: {image: b, user: '0;x'}\n",
         "line 2: service a: user: name, uid or uid:gid is expected, got '0;x'"},
        {"services:\n  a: {image: b, working_dir: x}\n",
         "line 2: service a: working_dir: an absolute path is expected, got 'x'"},
    };
    for (const Row& row : rows)
    {
        INFO(row.yaml);
        CHECK(refusal(row.yaml) == row.message);
    }
}

TEST_CASE("every refusal names a next step where there is one")
{
    const auto app = parse_compose("services:\n  web:\n    image: a\n    build: .\n");
    REQUIRE_FALSE(app);
    CHECK(app.error().hint.find("dstackup image import") != std::string::npos);
    CHECK(app.error().code == dstack::Errc::invalid_argument);
}

TEST_CASE("a file over 256 KiB is refused before it is parsed")
{
    const std::string big(max_compose_bytes + 1, '[');
    CHECK(refusal(big) == "the compose file has 262145 bytes, at most 262144 (256 KiB) are accepted");
}

TEST_CASE("more services than the guest runs are refused")
{
    std::string yaml = "services:\n";
    for (std::size_t i = 0; i <= max_services; ++i) { yaml += "  s" + std::to_string(i) + ": {image: b}\n"; }
    CHECK(refusal(yaml) == "line 1: services: there are 33, at most 32 can run");
}

TEST_CASE("variables fill ${NAME}")
{
    const auto app = parse_compose(
        "services:\n  a:\n    image: ${IMAGE:-busybox}\n    environment: {WHO: \"${WHO}\"}\n", {{"WHO", "world"}});
    REQUIRE(app);
    CHECK(app->services[0].image == "docker.io/library/busybox:latest");
    CHECK(app->services[0].environment[0].second == "world");
}
