#include "services/vmm-local/qemu_args.hpp"
#include "services/vmm-local/rpc.hpp"
#include "services/vmm-local/validate.hpp"
#include "tests/catch.hpp"
#include <algorithm>

using namespace dstack;
using namespace dstack::vmm;

namespace
{
const std::string compose = R"({"manifest_version":2,"name":"hello","runner":"docker-compose"})";

VmConfiguration request()
{
    VmConfiguration out;
    out.name = "hello";
    out.image = "dstack-dev-0.6.0";
    out.compose_file = compose;
    out.vcpu = 2;
    out.memory = 512;
    out.ports = {{"tcp", 8080, 80, ""}};
    return out;
}

HostFacts host()
{
    HostFacts out;
    out.port_ranges = {{"tcp", 1, 20000}};
    return out;
}

std::string refusal(const VmConfiguration& r, const HostFacts& h = host())
{
    const auto plan = plan_vm(r, h);
    return plan ? "" : plan.error().message;
}

template <class F>
std::string refusal_when(F change)
{
    VmConfiguration r = request();
    change(r);
    return refusal(r);
}
} // namespace

TEST_CASE("method names: one segment, both prefixes, case-sensitive")
{
    const std::pair<const char*, const char*> table[] = {
        {"/prpc/CreateVm", "CreateVm"},
        {"/prpc/Teepod.CreateVm", "CreateVm"},
        {"/prpc/Vmm.CreateVm", "CreateVm"},
        {"/prpc/Teepod.Teepod.Vmm.Status", "Status"},
        {"/prpc/createvm", "createvm"},
        {"/prpc/a/b", ""},
        {"/other", ""},
        {"/prpc/", ""},
    };
    for (const auto& [path, method] : table) { CHECK(method_of(path) == method); }
}

TEST_CASE("JSON mode is chosen as upstream chooses it")
{
    const struct
    {
        const char* method;
        const char* query;
        const char* type;
        bool json;
    } table[] = {
        {"GET", "", "", true},
        {"POST", "json", "", true},
        {"POST", "json=", "", true},
        {"POST", "a=b&json=1", "", true},
        {"POST", "json=true", "", true},
        {"POST", "json=0", "", false},
        {"POST", "json=yes", "", false},
        {"POST", "", "application/json", true},
        {"POST", "", "Application/JSON; charset=utf-8", true},
        {"POST", "", "application/octet-stream", false},
        {"POST", "", "", false},
    };
    for (const auto& row : table)
    {
        CAPTURE(row.method, row.query, row.type);
        CHECK(wants_json(row.method, row.query, row.type) == row.json);
    }
    CHECK(error_body("VM not \"found\"") == "{\n  \"error\": \"VM not \\\"found\\\"\"\n}");
}

TEST_CASE("messages follow serde's rules")
{
    CHECK(decode_id("")->id.empty());
    CHECK(decode_id("  ")->id.empty());
    CHECK(decode_id(R"({"id":"a","unknown":[1]})")->id == "a");
    CHECK_FALSE(decode_id(R"({"id":null})"));
    CHECK_FALSE(decode_id("null"));
    CHECK_FALSE(decode_id("[]"));
    CHECK_FALSE(decode_id("{"));
    CHECK_FALSE(decode_id(R"({"id":1})"));

    const auto full = decode_vm_configuration(R"({"name":"n","vcpu":1,"memory":4294967295,"ports":[{"protocol":"tcp","host_port":1,
        "vm_port":2,"host_address":"::"}],"encrypted_env":"0x0aFF","app_id":null,"gpus":{"gpus":[{"slot":"a"}],"attach_mode":"listed"},
        "networking":null,"networks":[{"mode":"user"}],"simulated_tee":"dstack-tdx","vm_id":"x","cid":1003,"vmPort":1})");
    REQUIRE(full);
    CHECK(full->memory == 4294967295U);
    CHECK(full->ports[0].host_address == "::");
    CHECK(full->encrypted_env == "\x0a\xff");
    CHECK_FALSE(full->app_id);
    CHECK(full->gpus->slots == std::vector<std::string>{"a"});
    CHECK(full->networks[0].mode == "user");
    CHECK(full->cid == 1003);
    for (const char* bad : {R"({"vcpu":-1})", R"({"vcpu":1.5})", R"({"vcpu":4294967296})", R"({"vcpu":"a"})", R"({"ports":null})",
                            R"({"ports":[1]})", R"({"ports":[{"host_port":"x"}]})", R"({"encrypted_env":"abc"})",
                            R"({"encrypted_env":"0X00"})", R"({"stopped":1})", R"({"kms_urls":[1]})", R"({"networking":[]})"})
    {
        CAPTURE(bad);
        CHECK_FALSE(decode_vm_configuration(bad));
    }
    CHECK(decode_vm_configuration(R"({"ports":[{"host_port":"x"}]})").error().message ==
          "invalid value for `ports.host_port`: expected a u32");
}

TEST_CASE("a GET's query is the same request")
{
    CHECK(decode_id(query_to_json("id=a%20b&json"))->id == "a b");
    const auto status = decode_status(query_to_json("ids[0]=x&ids[]=y&brief=true&page=2&page_size=10&keyword=k"));
    REQUIRE(status);
    CHECK(status->ids == std::vector<std::string>{"x", "y"});
    CHECK(status->brief);
    CHECK(status->page == 2);
    CHECK(status->page_size == 10);
    CHECK_FALSE(decode_status(query_to_json("page=x")));
    CHECK(query_to_json("") == "{}");
}

TEST_CASE("a good request becomes a definition")
{
    const auto plan = plan_vm(request(), host());
    REQUIRE(plan);
    CHECK(plan->port_map == std::vector<PortMap>{{"127.0.0.1", "tcp", 8080, 80}});
    CHECK(plan->app_id == compose_hash(compose).substr(0, 40));
    CHECK(compose_hash("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    VmConfiguration r = request();
    r.app_id = "0xABcd";
    r.simulated_tee = "dstack-tdx";
    const auto with_id = plan_vm(r, host());
    REQUIRE(with_id);
    CHECK(with_id->app_id == "abcd");
    CHECK(with_id->no_tee);
    r.app_id = "";
    CHECK(plan_vm(r, host())->app_id.empty());
}

TEST_CASE("refusals have upstream's texts")
{
    CHECK(refusal_when([](auto& r) { r.name = "a/b"; }) == "Invalid name: a/b");
    CHECK(refusal_when([](auto& r) { r.name = "a\nb"; }) == "Invalid name: a\nb");
    CHECK(refusal_when([](auto& r) { r.name = "A-z_0. @~!$^()"; }).empty());
    CHECK(refusal_when([](auto& r) { r.name = ""; }).empty());
    CHECK(refusal_when([](auto& r) { r.ports[0].host_port = 65536; }) ==
          "Invalid host port: out of range integral type conversion attempted");
    CHECK(refusal_when([](auto& r) { r.ports[0].vm_port = 65536; }) ==
          "Invalid vm port: out of range integral type conversion attempted");
    CHECK(refusal_when([](auto& r) { r.ports[0].vm_port = 0; }).empty());
    CHECK(refusal_when([](auto& r) { r.ports[0].host_port = 20001; }) == "Port mapping is not allowed for tcp:20001");
    CHECK(refusal_when([](auto& r) { r.ports[0].host_port = 0; }) == "Port mapping is not allowed for tcp:0");
    CHECK(refusal_when([](auto& r) { r.ports[0].protocol = "TCP"; }) == "Port mapping is not allowed for TCP:8080");
    CHECK(refusal_when([](auto& r) { r.ports[0].host_address = "localhost"; }) ==
          "Invalid host address: invalid IP address syntax");
    CHECK(refusal_when([](auto& r) { r.ports.push_back({"tcp", 8080, 81, "0.0.0.0"}); }) ==
          "duplicate host port mapping: tcp 0.0.0.0:8080");
    CHECK(refusal_when([](auto& r) { r.ports.push_back({"tcp", 8080, 81, "127.0.0.2"}); }).empty());
    CHECK(refusal_when([](auto& r) { r.gpus = GpuConfig{}; }) == "Invalid GPU attach mode: ");
    CHECK(refusal_when([](auto& r) { r.gpus = GpuConfig{{}, "listed"}; }).empty());
    CHECK(refusal_when([](auto& r) { r.gpus = GpuConfig{{"a"}, "listed"}; }) == "GPU is not enabled");
    CHECK(refusal_when([](auto& r) { r.compose_file = R"({"verity_volumes":[{}]})"; }) ==
          "volumes requested but cvm.volumes_dir is not configured");
    CHECK(refusal_when([](auto& r) { r.simulated_tee = "sgx"; }) == "unsupported simulated_tee 'sgx'");
    CHECK(refusal_when([](auto& r) { r.compose_file = "services:"; }).rfind("invalid app compose JSON: ", 0) == 0);
    CHECK(refusal_when([](auto& r) { r.compose_file = R"({"key_provider":"x"})"; }) == "invalid key_provider");
    CHECK(refusal_when([](auto& r) { r.networking = Networking{}; }).empty());
    CHECK(refusal_when([](auto& r) { r.networking = Networking{"custom", ""}; }) == "custom networking mode is manifest-only");
    CHECK(refusal_when([](auto& r) { r.networks = {{"", ""}}; }) == "unsupported networking mode ''");
    CHECK(refusal_when([](auto& r) { r.networks = {{"user", "br0"}}; }) ==
          "bridge_name is only valid for bridge networking mode");
    CHECK(refusal_when([](auto& r) { r.networks = {{"bridge", "nosuchbr"}}; }) == "bridge interface 'nosuchbr' does not exist");
    CHECK(refusal_when([](auto& r) { r.vm_id = "../x"; }) == "invalid VM id");

    HostFacts closed = host();
    closed.port_mapping = false;
    CHECK(refusal(request(), closed) == "Port mapping is disabled");
    closed.port_mapping = true;
    closed.tee_simulator = false;
    VmConfiguration simulated = request();
    simulated.simulated_tee = "dstack-tdx";
    CHECK(refusal(simulated, closed) == "tee simulator credentials are not configured on this VMM");
}

TEST_CASE("the checks come in upstream's order")
{
    VmConfiguration r = request();
    r.name = "/";
    r.ports[0].host_port = 0;
    r.gpus = GpuConfig{};
    r.compose_file = "no json";
    CHECK(refusal(r) == "Invalid name: /");
    r.name = "x";
    CHECK(refusal(r) == "Port mapping is not allowed for tcp:0");
    r.ports.clear();
    CHECK(refusal(r) == "Invalid GPU attach mode: ");
    r.gpus.reset();
    CHECK(refusal(r).rfind("invalid app compose JSON", 0) == 0);
}

TEST_CASE("host ports of other VMs, stopped ones too, are taken")
{
    Manifest other;
    other.id = "other";
    other.port_map = {{"0.0.0.0", "tcp", 8080, 1}};
    HostFacts facts = host();
    facts.others = {&other};
    CHECK(refusal(request(), facts) == "host port mapping conflicts with VM other: tcp 127.0.0.1:8080");
    CHECK(plan_vm(request(), facts).error().code == Errc::already_exists);
    other.port_map[0].address = "127.0.0.2";
    CHECK(refusal(request(), facts).empty());
    other.port_map[0] = {"127.0.0.1", "udp", 8080, 1};
    CHECK(refusal(request(), facts).empty());
}

TEST_CASE("port ranges of the configuration")
{
    const auto range = parse_port_range("udp:5-10");
    REQUIRE(range);
    CHECK(range->protocol == "udp");
    CHECK(range->from == 5);
    CHECK(range->to == 10);
    for (const char* bad : {"", "tcp", "tcp:1", "tcp:0-1", "tcp:2-1", "sctp:1-2", "tcp:1-65536", "tcp:a-b", "tcp:1-2x"})
    {
        CHECK_FALSE(parse_port_range(bad));
    }
}

TEST_CASE("app composes are checked as upstream loads them")
{
    CHECK(check_app_compose(compose));
    CHECK(check_app_compose(R"({"manifest_version":"3","name":"","runner":"bash"})"));
    CHECK(check_app_compose(R"({"name":"","runner":"bash"})").error().message ==
          "Invalid compose file: missing field `manifest_version`");
    CHECK(check_app_compose(R"({"manifest_version":2,"name":""})").error().message ==
          "Invalid compose file: missing field `runner`");
    for (const char* version : {"3", "\"03\"", "\"+3\"", "\"0\"", "\"\"", "1.5", "null"})
    {
        CHECK_FALSE(check_app_compose(std::string{R"({"name":"","runner":"bash","manifest_version":)"} + version + "}"));
    }
    CHECK_FALSE(check_app_compose("[]"));
    CHECK_FALSE(check_app_compose("x"));
}

TEST_CASE("the command line has upstream's order and no surprises")
{
    CHECK(mac_of("vm-123") == "96:b1:d8:b9:08:e6");
    CHECK(option_value("/a,b") == "/a,,b");
    QemuPlan plan;
    plan.vm_id = "vm-123";
    plan.work_dir = "/w";
    plan.memory = 512;
    plan.kernel = "/i/bzImage";
    plan.initrd = "/i/initrd";
    plan.cmdline = "console=ttyS0 a,b";
    plan.rootfs = "/i,1/rootfs.img.verity";
    plan.store_image = "/s/store.squashfs";
    plan.ports = {{"127.0.0.1", "tcp", 8080, 80}, {"0.0.0.0", "udp", 53, 53}};
    const auto args = qemu_arguments(plan);
    std::string line;
    for (const auto& arg : args) { line += arg + " "; }
    CHECK(line ==
          "qemu-system-x86_64 -accel tcg,thread=multi,tb-size=64 -cpu max -display none -nodefaults -no-user-config -no-reboot "
          "-name dstack-vm-123 -chardev file,id=com0,append=on,path=/w/serial.log -serial chardev:com0 "
          "-qmp unix:qmp.sock,server=on,wait=off -kernel /i/bzImage -initrd /i/initrd "
          "-drive file=/i,,1/rootfs.img.verity,if=none,id=hd0,format=raw,readonly=on "
          "-device virtio-blk-pci,drive=hd0,serial=dstack-rootfs "
          "-drive file=/s/store.squashfs,if=none,id=store,format=raw,readonly=on "
          "-device virtio-blk-pci,drive=store,serial=dstack-store "
          "-netdev user,id=net0,net=10.0.2.0/24,dhcpstart=10.0.2.15,restrict=no,hostfwd=tcp:127.0.0.1:8080-:80,"
          "hostfwd=udp:0.0.0.0:53-:53 -device virtio-net-pci,netdev=net0,romfile=,mac=96:b1:d8:b9:08:e6 "
          "-smbios type=1,manufacturer=dstack,product=dstack "
          "-drive file=/w/shared.img,if=none,id=hd2,format=raw,readonly=on -device virtio-blk-pci,drive=hd2,serial=dstack-shared "
          "-machine q35 -smp 1 -m 512M -append console=ttyS0 a,b ");
    plan.accel = Accel::kvm;
    plan.data_disk = true;
    plan.cid = 1003;
    plan.vcpu = 4;
    const auto kvm = qemu_arguments(plan);
    const auto has = [&kvm](std::string_view text) { return std::find(kvm.begin(), kvm.end(), text) != kvm.end(); };
    CHECK(has("kvm"));
    CHECK(has("vhost-vsock-pci,guest-cid=1003"));
    CHECK(has("file=/w/hda.img,if=none,id=hd1,format=qcow2"));
    CHECK(has("4"));
    for (const auto& arg : kvm) { CHECK(arg.size() < 1000); }
    for (const auto serial : {serial_rootfs, serial_data, serial_store, serial_shared}) { CHECK(serial.size() <= 20); }
}
