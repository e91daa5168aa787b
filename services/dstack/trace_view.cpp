#include "services/dstack/trace_view.hpp"
#include "services/dstack/text.hpp"
#include "shared/base/time.hpp"
#include <algorithm>
#include <array>
#include <cstdio>
#include <list>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

namespace dstack::cli
{

namespace
{
using json = nlohmann::ordered_json;
using Kind = TraceNode::Kind;

constexpr std::uint64_t long_wait_ms = 50;
constexpr std::uint64_t slack_ms = 3; ///< two processes read the clock one after the other

bool is_hex(std::string_view text)
{
    return std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

std::string text_of(const json& object, const char* key)
{
    const auto found = object.is_object() ? object.find(key) : object.end();
    return object.is_object() && found != object.end() && found->is_string() ? found->get<std::string>() : std::string{};
}

std::uint64_t number_of(const json& object, const char* key)
{
    const auto found = object.is_object() ? object.find(key) : object.end();
    return object.is_object() && found != object.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : 0;
}

std::string span_of(std::string_view traceparent) { return std::string{traceparent.size() == 55 ? traceparent.substr(36, 16) : ""}; }

/// What an event is about.
std::set<std::string> subjects_of(const TraceEvent& event)
{
    std::set<std::string> out;
    const auto data = json::parse(event.data, nullptr, false);
    for (const json& object : {data, data.is_object() && data.contains("decision") ? data["decision"] : json{}})
    {
        for (const char* key : {"app_id", "vm_id"})
        {
            std::string value = text_of(object, key);
            if (!value.empty()) { out.insert(std::move(value)); }
        }
    }
    return out;
}

/// Nodes that have children, kept where they are while the tree is made.
struct Span
{
    TraceNode node;
    std::string span_id{};
    std::string operation{};
    Span* parent = nullptr;
    std::list<Span*> below{};
};

class Builder
{
  public:
    void add(const TraceEvent& event, bool related)
    {
        const auto data = json::parse(event.data, nullptr, false);
        if (event.type == "command.finished") { add_command(event, data); }
        else if (event.type == "deploy.started") { add_operation(event, data); }
        else if (event.type == "deploy.succeeded" || event.type == "deploy.failed") { end_operation(event, data); }
        else if (event.type == "deploy.step" && text_of(data, "state") != "resumed") { add_step(event, data); }
        else { add_event(event, related); }
    }

    std::vector<TraceNode> finish()
    {
        for (Span& span : spans_)
        {
            span.parent = parent_of(span);
            if (span.parent != nullptr) { span.parent->below.push_back(&span); }
        }
        std::vector<TraceNode> roots;
        for (Span& span : spans_)
        {
            if (span.parent == nullptr) { roots.push_back(take(span)); }
        }
        sort(roots);
        return roots;
    }

  private:
    Span& add(const TraceEvent& event, Kind kind)
    {
        Span span;
        span.node.kind = kind;
        span.node.source = event.source;
        span.node.cursor = event.cursor;
        span.node.begin_ms = span.node.end_ms = event.time_ms;
        span.span_id = span_of(event.traceparent);
        spans_.push_back(std::move(span));
        return spans_.back();
    }

    void add_command(const TraceEvent& event, const json& data)
    {
        Span& span = add(event, Kind::command);
        const std::uint64_t took = number_of(data, "took_ms");
        span.node.begin_ms = event.time_ms > took ? event.time_ms - took : 0;
        span.node.name = text_of(data, "command");
        span.node.source = text_of(data, "service");
        span.node.status = text_of(data, "code");
        span.node.bad = span.node.status != "ok";
        span.node.detail = text_of(data, "caller") + " to " + span.node.source;
        const std::uint64_t waited = number_of(data, "waited_ms");
        if (waited >= long_wait_ms) { span.node.detail += ", " + std::to_string(waited) + " ms of it before the service had it"; }
        const std::string message = text_of(data, "message");
        if (!message.empty()) { span.node.detail += ": " + message; }
        callers_[&span] = text_of(data, "caller");
    }

    Span& operation(const TraceEvent& event, const json& data)
    {
        const std::string id = text_of(data, "operation");
        for (Span& span : spans_)
        {
            if (span.node.kind == Kind::operation && span.operation == id) { return span; }
        }
        Span& span = add(event, Kind::operation);
        span.operation = id;
        span.node.name = text_of(data, "kind") + " " + text_of(data, "name");
        span.node.status = "running";
        return span;
    }

    void add_operation(const TraceEvent& event, const json& data)
    {
        Span& span = operation(event, data);
        span.node.begin_ms = std::min(span.node.begin_ms, event.time_ms);
        span.node.detail = "operation " + span.operation;
    }

    void end_operation(const TraceEvent& event, const json& data)
    {
        Span& span = operation(event, data);
        span.node.end_ms = event.time_ms;
        const bool failed = event.type == "deploy.failed";
        span.node.status = failed ? text_of(data, "code") : "ok";
        span.node.bad = failed;
        if (span.node.detail.empty()) { span.node.detail = "operation " + span.operation; }
        span.node.detail += ": " + (failed ? text_of(data, "step") + ": " + text_of(data, "reason") : text_of(data, "evidence"));
        const std::uint64_t took = number_of(data, "took_ms");
        if (span.node.begin_ms == event.time_ms && took < event.time_ms) { span.node.begin_ms = event.time_ms - took; } // its start is lost
    }

    void add_step(const TraceEvent& event, const json& data)
    {
        Span& span = add(event, Kind::step);
        const std::uint64_t took = number_of(data, "took_ms");
        span.node.begin_ms = event.time_ms > took ? event.time_ms - took : 0;
        span.node.name = text_of(data, "step");
        const std::string state = text_of(data, "state");
        span.node.status = state == "done" ? "ok" : state;
        span.node.detail = text_of(data, "detail");
        span.operation = text_of(data, "operation");
    }

    void add_event(const TraceEvent& event, bool related)
    {
        Span& span = add(event, Kind::event);
        span.node.name = event.type;
        span.node.detail = fields_of(event.data, {});
        span.node.related = related;
        span.node.bad = event.severity == "warning" || event.severity == "error";
    }

    static bool covers(const Span& outer, const Span& inner, std::uint64_t slack)
    {
        const std::uint64_t middle = inner.node.begin_ms + (inner.node.end_ms - inner.node.begin_ms) / 2;
        const bool open = outer.node.status == "running";
        return outer.node.begin_ms <= middle + slack && (open || middle <= outer.node.end_ms + slack);
    }

    /// What of this kind went on then. Where one ends in the millisecond in which the next begins, the first: a cause comes
    /// before what it causes.
    Span* going_on(const Span& inner, Kind kind)
    {
        for (const std::uint64_t slack : {std::uint64_t{0}, slack_ms})
        {
            Span* first = nullptr;
            for (Span& span : spans_)
            {
                if (span.node.kind != kind || &span == &inner || !covers(span, inner, slack)) { continue; }
                if (first == nullptr || span.node.begin_ms < first->node.begin_ms) { first = &span; }
            }
            if (first != nullptr) { return first; }
        }
        return nullptr;
    }

    /// What of this kind has its span; of several (a step may ask twice) the one that went on at the time.
    Span* of_its_span(const Span& inner, Kind kind)
    {
        Span* found = nullptr;
        for (Span& span : spans_)
        {
            if (span.node.kind != kind || inner.span_id.empty() || span.span_id != inner.span_id) { continue; }
            if (found == nullptr || (!covers(*found, inner, slack_ms) && covers(span, inner, slack_ms))) { found = &span; }
        }
        return found;
    }

    /// An event belongs to the command that has its span; else, like a command of a service, to the step that has it, or to
    /// the step or operation that went on at the time. Only one operation works on an app at a time.
    Span* parent_of(const Span& span)
    {
        if (span.node.kind == Kind::operation) { return nullptr; }
        if (span.node.kind == Kind::step)
        {
            for (Span& other : spans_)
            {
                if (other.node.kind == Kind::operation && other.operation == span.operation) { return &other; }
            }
            return nullptr;
        }
        if (span.node.kind == Kind::command && callers_[&span].find(':') != std::string::npos) { return nullptr; } // no service: somebody with a role
        if (span.node.kind == Kind::event)
        {
            if (Span* command = of_its_span(span, Kind::command); command != nullptr) { return command; }
        }
        if (Span* step = of_its_span(span, Kind::step); step != nullptr) { return step; }
        Span* step = going_on(span, Kind::step);
        return step != nullptr ? step : going_on(span, Kind::operation);
    }

    static void sort(std::vector<TraceNode>& nodes)
    {
        std::stable_sort(nodes.begin(), nodes.end(), [](const TraceNode& a, const TraceNode& b)
                         { return a.begin_ms != b.begin_ms ? a.begin_ms < b.begin_ms : a.kind < b.kind; });
    }

    static TraceNode take(Span& span)
    {
        TraceNode out = std::move(span.node);
        for (Span* child : span.below) { out.children.push_back(take(*child)); }
        sort(out.children);
        return out;
    }

    std::list<Span> spans_;
    std::map<const Span*, std::string> callers_;
};

std::string duration(std::uint64_t ms)
{
    std::array<char, 32> text{};
    if (ms < 1000) { std::snprintf(text.data(), text.size(), "%llu ms", static_cast<unsigned long long>(ms)); }
    else if (ms < 120'000) { std::snprintf(text.data(), text.size(), "%.2f s", static_cast<double>(ms) / 1000.0); }
    else
    {
        std::snprintf(text.data(), text.size(), "%llu m %02llu s", static_cast<unsigned long long>(ms / 60'000),
                      static_cast<unsigned long long>(ms / 1000 % 60));
    }
    return text.data();
}

void print(const TraceNode& node, const Trace& trace, const std::string& indent, bool last, bool root, std::string& out)
{
    std::array<char, 64> times{};
    const std::string took = node.kind == Kind::event ? "" : node.status == "running" ? "..." : duration(node.end_ms - node.begin_ms);
    std::snprintf(times.data(), times.size(), "%10s %10s  ", ("+" + duration(node.begin_ms - std::min(node.begin_ms, trace.begin_ms))).c_str(), took.c_str());
    out += times.data();
    out += indent + (root ? "" : last ? "`- " : "|- ");
    if (node.related) { out += "~ "; }
    out += printable(node.name);
    if (!node.status.empty() && node.status != "ok") { out += " [" + printable(node.status) + "]"; }
    else if (node.bad) { out += " [!]"; }
    if (!node.detail.empty()) { out += "  " + printable(node.detail); }
    out += "\n";
    const std::string below = root ? indent : indent + (last ? "   " : "|  ");
    for (std::size_t i = 0; i < node.children.size(); ++i) { print(node.children[i], trace, below, i + 1 == node.children.size(), false, out); }
}

json node_json(const TraceNode& node, const Trace& trace)
{
    static constexpr std::array<const char*, 4> kinds{"command", "operation", "step", "event"};
    json children = json::array();
    for (const TraceNode& child : node.children) { children.push_back(node_json(child, trace)); }
    json out{{"kind", kinds[static_cast<std::size_t>(node.kind)]},
             {"name", node.name},
             {"source", node.source},
             {"time", rfc3339(node.begin_ms)},
             {"offset_ms", node.begin_ms - std::min(node.begin_ms, trace.begin_ms)}};
    if (node.kind != Kind::event)
    {
        out["status"] = node.status;
        out["duration_ms"] = node.status == "running" ? json() : json(node.end_ms - node.begin_ms);
    }
    out["detail"] = node.detail;
    out["bad"] = node.bad;
    out["related"] = node.related;
    out["cursor"] = node.cursor;
    out["children"] = std::move(children);
    return out;
}
} // namespace

std::string_view trace_id_of(std::string_view traceparent)
{
    const bool whole = traceparent.size() == 55 && traceparent[2] == '-' && traceparent[35] == '-' && traceparent[52] == '-';
    return whole && is_hex(traceparent.substr(3, 32)) ? traceparent.substr(3, 32) : std::string_view{};
}

std::string_view as_trace_id(std::string_view text) { return text.size() == 32 && is_hex(text) ? text : trace_id_of(text); }

void TraceCollector::add(TraceEvent event)
{
    const bool ours = trace_id_of(event.traceparent) == trace_id_;
    if (ours)
    {
        if (events_.size() < max_events) { events_.push_back(std::move(event)); }
        else { truncated_ = true; }
        return;
    }
    const bool telling = event.traceparent.empty() && !event.type.starts_with("bus.") && !event.type.starts_with("service.");
    if (!telling) { return; }
    if (candidates_.size() >= max_candidates)
    {
        // Before the trace began the oldest matter least; after that they are the ones that count.
        if (!events_.empty())
        {
            truncated_ = true;
            return;
        }
        candidates_.erase(candidates_.begin(), candidates_.begin() + max_candidates / 2);
    }
    candidates_.push_back(std::move(event));
}

Trace TraceCollector::build() const
{
    Trace out;
    out.trace_id = trace_id_;
    out.events = events_.size();
    if (events_.empty()) { return out; }
    Builder builder;
    std::set<std::string> subjects;
    std::uint64_t last_ms = 0;
    std::uint64_t first_ms = events_.front().time_ms;
    for (const TraceEvent& event : events_)
    {
        subjects.merge(subjects_of(event));
        first_ms = std::min(first_ms, event.time_ms);
        last_ms = std::max(last_ms, event.time_ms);
        builder.add(event, false);
    }
    for (const TraceEvent& event : candidates_)
    {
        if (event.time_ms + slack_ms < first_ms || event.time_ms > last_ms + slack_ms) { continue; }
        const auto about = subjects_of(event);
        const bool same = std::any_of(about.begin(), about.end(), [&](const std::string& one) { return subjects.contains(one); });
        if (!same) { continue; }
        ++out.events;
        builder.add(event, true);
    }
    out.roots = builder.finish();
    out.begin_ms = first_ms;
    out.end_ms = last_ms;
    for (const TraceNode& root : out.roots) { out.begin_ms = std::min(out.begin_ms, root.begin_ms); }
    return out;
}

std::string trace_text(const Trace& trace)
{
    std::string out = "trace " + trace.trace_id + ": " + std::to_string(trace.events) + " events in " + duration(trace.end_ms - trace.begin_ms) +
                      ", from " + rfc3339(trace.begin_ms) + "\n";
    bool related = false;
    const auto look = [&related](const auto& self, const std::vector<TraceNode>& nodes) -> void
    {
        for (const TraceNode& node : nodes)
        {
            related = related || node.related;
            self(self, node.children);
        }
    };
    look(look, trace.roots);
    for (const TraceNode& root : trace.roots) { print(root, trace, {}, true, true, out); }
    if (related) { out += "~ carries no trace: about the same app or VM, at the same time\n"; }
    return out;
}

std::string trace_json(const Trace& trace)
{
    json roots = json::array();
    for (const TraceNode& root : trace.roots) { roots.push_back(node_json(root, trace)); }
    const json out{{"traceId", trace.trace_id},
                   {"beganAt", rfc3339(trace.begin_ms)},
                   {"duration_ms", trace.end_ms - trace.begin_ms},
                   {"events", trace.events},
                   {"spans", std::move(roots)}};
    return out.dump(-1, ' ', false, json::error_handler_t::replace);
}

} // namespace dstack::cli
