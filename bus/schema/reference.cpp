// dstack-bus-docs OUT_DIR: writes the reference page, the JSON Schema and the AsyncAPI document of the vocabulary.
#include "bus/schema/catalog.hpp"
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

using namespace dstack;
using namespace dstack::schema;
using Json = nlohmann::ordered_json;

namespace
{

/// One walk over a field list gives both the rows of a table and the properties of a schema.
class Reference final : public Fields
{
  public:
    std::string rows;
    Json properties = Json::object();
    Json required_names = Json::array();
    std::string prefix;

    Json schema() const
    {
        Json out{{"type", "object"}, {"properties", properties}};
        if (!required_names.empty()) { out["required"] = required_names; }
        return out;
    }

  protected:
    void text(Name name, std::string&, Name doc, bool required) override { add(name, "string", {{"type", "string"}}, doc, required); }
    void flag(Name name, bool&, Name doc, bool required) override { add(name, "boolean", {{"type", "boolean"}}, doc, required); }
    void number(Name name, std::uint64_t&, std::uint64_t max, Name doc, bool required) override
    {
        const Json type{{"type", "integer"}, {"minimum", 0}, {"maximum", max}};
        add(name, max == UINT32_MAX ? "u32" : max == UINT64_MAX ? "u64" : "integer", type, doc, required);
    }
    void integer(Name name, std::int64_t&, Name doc, bool required) override { add(name, "i64", {{"type", "integer"}}, doc, required); }
    void texts(Name name, std::vector<std::string>&, Name doc, bool required) override
    {
        add(name, "string[]", {{"type", "array"}, {"items", {{"type", "string"}}}}, doc, required);
    }
    void raw(Name name, RawJson&, Name doc, bool required) override { add(name, "any JSON", Json::object(), doc, required); }
    void list(Name name, const List& list, Name doc, bool required) override
    {
        Reference element;
        element.prefix = prefix + std::string{name} + "[].";
        list.describe(list.size, element); // the blank element
        add(name, "object[]", {{"type", "array"}, {"items", element.schema()}}, doc, required);
        rows += element.rows;
    }

  private:
    void add(Name name, std::string_view type, Json schema_type, Name doc, bool required)
    {
        rows += "| `" + prefix + std::string{name} + "` | " + std::string{type} + " | " + (required ? "yes" : "") + " | " + std::string{doc} + " |\n";
        schema_type["description"] = doc;
        properties[std::string{name}] = std::move(schema_type);
        if (required) { required_names.push_back(name); }
    }
};

std::string table(const Reference& fields)
{
    if (fields.rows.empty()) { return "No fields.\n"; }
    return "| field | type | required | meaning |\n|---|---|---|---|\n" + fields.rows;
}

std::string reference_page()
{
    std::string out = "# Events and commands\n\nMade by `dstack-bus-docs` from `bus/schema/`; do not edit. Frames and delivery are in\n"
                      "[bus/README.md](../../bus/README.md).\n\n## Events\n\n| type | emitter | severity | meaning |\n|---|---|---|---|\n";
    for (const EventEntry& entry : events())
    {
        out += "| [`" + std::string{entry.type.name} + "`](#" + std::string{entry.type.name} + ") | " + std::string{entry.type.emitter} + " | " +
               std::string{to_string(entry.type.severity)} + " | " + std::string{entry.type.doc} + " |\n";
    }
    out += "\n## Commands\n\n| command | served by | least role | services | meaning |\n|---|---|---|---|---|\n";
    for (const CommandEntry& entry : commands())
    {
        out += "| [`" + std::string{entry.type.name} + "`](#" + std::string{entry.type.name} + ") | " + std::string{entry.type.target} + " | " +
               std::string{to_string(entry.type.role)} + " | " + std::string{entry.type.services} + " | " + std::string{entry.type.doc} + " |\n";
    }
    for (const EventEntry& entry : events())
    {
        Reference fields;
        entry.describe(fields);
        out += "\n<a id=\"" + std::string{entry.type.name} + "\"></a>\n### " + std::string{entry.type.name} + "\n\nEvent since version " +
               std::to_string(entry.type.since) + ". " + std::string{entry.type.doc} + "\n\n" + table(fields);
    }
    for (const CommandEntry& entry : commands())
    {
        Reference request;
        entry.describe_request(request);
        Reference reply;
        entry.describe_reply(reply);
        out += "\n<a id=\"" + std::string{entry.type.name} + "\"></a>\n### " + std::string{entry.type.name} + "\n\nCommand since version " +
               std::to_string(entry.type.since) + ". " + std::string{entry.type.doc} + "\n\nRequest:\n\n" + table(request) + "\nReply:\n\n" + table(reply);
    }
    return out;
}

Json json_schema()
{
    Json definitions = Json::object();
    for (const EventEntry& entry : events())
    {
        Reference fields;
        entry.describe(fields);
        Json schema = fields.schema();
        schema["description"] = entry.type.doc;
        definitions["event:" + std::string{entry.type.name}] = std::move(schema);
    }
    for (const CommandEntry& entry : commands())
    {
        Reference request;
        entry.describe_request(request);
        Reference reply;
        entry.describe_reply(reply);
        definitions["command:" + std::string{entry.type.name}] = request.schema();
        definitions["reply:" + std::string{entry.type.name}] = reply.schema();
    }
    return Json{{"$schema", "https://json-schema.org/draft/2020-12/schema"}, {"title", "dstack bus, version 1"}, {"$defs", std::move(definitions)}};
}

Json asyncapi()
{
    Json channels = Json::object();
    Json operations = Json::object();
    for (const EventEntry& entry : events())
    {
        const std::string name{entry.type.name};
        Reference fields;
        entry.describe(fields);
        channels[name] = {{"address", "e." + name},
                          {"messages", {{name, {{"contentType", "application/cloudevents+json"}, {"summary", entry.type.doc}, {"payload", fields.schema()}}}}}};
        operations["receive." + name] = {{"action", "receive"}, {"channel", {{"$ref", "#/channels/" + name}}}};
    }
    for (const CommandEntry& entry : commands())
    {
        const std::string name{entry.type.name};
        Reference request;
        entry.describe_request(request);
        Reference reply;
        entry.describe_reply(reply);
        channels[name] = {{"address", name},
                          {"messages", {{"request", {{"summary", entry.type.doc}, {"payload", request.schema()}}}, {"reply", {{"payload", reply.schema()}}}}}};
        operations["send." + name] = {{"action", "send"},
                                      {"channel", {{"$ref", "#/channels/" + name}}},
                                      {"reply", {{"channel", {{"$ref", "#/channels/" + name}}}}}};
    }
    return Json{{"asyncapi", "3.0.0"},
                {"info", {{"title", "dstack bus"}, {"version", "1"}, {"description", "Frames and delivery: bus/README.md"}}},
                {"channels", std::move(channels)},
                {"operations", std::move(operations)}};
}

bool write(const std::string& path, const std::string& text)
{
    std::ofstream file{path, std::ios::trunc};
    file << text;
    return file.good();
}

} // namespace

int main(int argc, char** argv)
{
    if (argc != 2)
    {
        std::fputs("usage: dstack-bus-docs OUT_DIR\n", stderr);
        return 64;
    }
    const std::string out = argv[1];
    const bool written = write(out + "/bus.md", reference_page()) && write(out + "/bus.schema.json", json_schema().dump(1) + "\n") &&
                         write(out + "/bus.asyncapi.json", asyncapi().dump(1) + "\n");
    if (!written) { std::fprintf(stderr, "dstack-bus-docs: cannot write to %s\n", out.c_str()); }
    return written ? 0 : 1;
}
