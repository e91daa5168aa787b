#include "shared/http/parser.hpp"
#include <algorithm>

namespace dstack::http
{

/// llhttp's C callbacks; nothing in them throws.
struct MessageCallbacks
{
    static MessageParser& of(llhttp_t* parser) { return *static_cast<MessageParser*>(parser->data); }

    static int begin(llhttp_t* p)
    {
        of(p).begin_message();
        of(p).started_ = true;
        return 0;
    }
    static int start(llhttp_t* p, const char* at, std::size_t size)
    {
        MessageParser& self = of(p);
        return self.count(size) && self.take_start({at, size}) ? 0 : -1;
    }
    static int field(llhttp_t* p, const char* at, std::size_t size)
    {
        MessageParser& self = of(p);
        if (!self.count(size)) { return -1; }
        if (self.head_done_) { return 0; } // trailers are counted and dropped
        Headers& fields = self.fields();
        if (self.in_value_)
        {
            self.in_value_ = false;
            if (fields.size() >= self.max_headers_)
            {
                self.refuse(431, "too many header fields");
                return -1;
            }
            if (!self.count(4)) { return -1; }
            fields.add({}, {});
        }
        fields.back().name.append(at, size);
        return 0;
    }
    static int value(llhttp_t* p, const char* at, std::size_t size)
    {
        MessageParser& self = of(p);
        if (!self.count(size)) { return -1; }
        if (self.head_done_) { return 0; }
        self.in_value_ = true;
        self.fields().back().value.append(at, size);
        return 0;
    }
    static int value_complete(llhttp_t* p)
    {
        MessageParser& self = of(p);
        if (self.head_done_) { return self.count(4) ? 0 : -1; }
        self.in_value_ = true; // also after an empty value
        std::string& text = self.fields().back().value;
        while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) { text.pop_back(); }
        return 0;
    }
    static int extension(llhttp_t* p, const char*, std::size_t size) { return of(p).count(size) ? 0 : -1; }
    static int headers_complete(llhttp_t* p)
    {
        MessageParser& self = of(p);
        p->upgrade = 0; // an Upgrade field is an offer that nobody here takes
        const int result = self.head_complete();
        self.head_done_ = true;
        return result;
    }
    static int body(llhttp_t* p, const char* at, std::size_t size) { return of(p).take_body({at, size}) ? 0 : -1; }
    static int complete(llhttp_t* p);

    static const llhttp_settings_t& settings()
    {
        static const llhttp_settings_t all = []
        {
            llhttp_settings_t s;
            llhttp_settings_init(&s);
            s.on_message_begin = begin;
            s.on_url = start;
            s.on_status = start;
            s.on_header_field = field;
            s.on_header_value = value;
            s.on_header_value_complete = value_complete;
            s.on_chunk_extension_name = extension;
            s.on_chunk_extension_value = extension;
            s.on_headers_complete = headers_complete;
            s.on_body = body;
            s.on_message_complete = complete;
            return s;
        }();
        return all;
    }
};

int MessageCallbacks::complete(llhttp_t* p)
{
    MessageParser& self = of(p);
    // "HTTP/1.1 100 Continue": the response is still to come.
    if (p->type == HTTP_RESPONSE && p->status_code / 100 == 1)
    {
        self.begin_message();
        return 0;
    }
    self.complete_ = true;
    return HPE_PAUSED;
}

MessageParser::MessageParser(llhttp_type_t type, std::size_t max_header_bytes, std::size_t max_headers)
    : max_header_bytes_(max_header_bytes), max_headers_(max_headers)
{
    llhttp_init(&parser_, type, &MessageCallbacks::settings());
    parser_.data = this;
}

void MessageParser::begin_message()
{
    header_bytes_ = 0;
    in_value_ = true;
    started_ = false;
    head_done_ = false;
    complete_ = false;
}

bool MessageParser::count(std::size_t bytes)
{
    header_bytes_ += bytes;
    return header_bytes_ <= max_header_bytes_ || refuse(431, "header fields are too large");
}

bool MessageParser::refuse(int status, std::string text)
{
    if (error_status_ == 0)
    {
        error_status_ = status;
        error_text_ = std::move(text);
    }
    return false;
}

std::size_t MessageParser::execute(std::string_view bytes)
{
    if (failed() || complete_ || bytes.empty()) { return 0; }
    started_ = true;
    const llhttp_errno_t code = llhttp_execute(&parser_, bytes.data(), bytes.size());
    if (code == HPE_OK) { return bytes.size(); }
    if (code == HPE_PAUSED)
    {
        const char* stopped = llhttp_get_error_pos(&parser_);
        llhttp_resume(&parser_);
        return static_cast<std::size_t>(stopped - bytes.data());
    }
    const char* reason = llhttp_get_error_reason(&parser_);
    refuse(code == HPE_INVALID_VERSION ? 505 : 400, std::string{"malformed message: "} + (reason == nullptr ? "" : reason));
    return 0;
}

RequestParser::RequestParser(const Limits& limits, const PlanBody* plan)
    : MessageParser(HTTP_REQUEST, limits.max_header_bytes, limits.max_headers), limits_(limits), plan_body_(plan)
{
    plan_.max_body_bytes = limits.max_body_bytes;
}

void RequestParser::next()
{
    begin_message();
    request_ = Request{};
    plan_ = {limits_.max_body_bytes, false};
    streamed_.clear();
    body_bytes_ = 0;
    expects_continue_ = false;
}

bool RequestParser::take_start(std::string_view bytes)
{
    request_.target.append(bytes);
    return true;
}

namespace
{
/// "http://host:80/x?y" as proxies send it: "/x?y".
void strip_authority(std::string& target)
{
    if (target.empty() || target.front() == '/') { return; }
    const auto scheme = target.find("://");
    if (scheme == std::string::npos) { return; }
    const auto end = target.find_first_of("/?", scheme + 3);
    target.erase(0, end);
    if (target.empty() || target.front() == '?') { target.insert(target.begin(), '/'); }
}
} // namespace

int RequestParser::head_complete()
{
    request_.method = llhttp_method_name(static_cast<llhttp_method_t>(parser_.method));
    is_head_ = parser_.method == HTTP_HEAD;
    http10_ = parser_.http_major == 1 && parser_.http_minor == 0;
    keep_alive_ = llhttp_should_keep_alive(&parser_) != 0;
    if (parser_.http_major != 1)
    {
        refuse(505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
        return -1;
    }
    if (parser_.method == HTTP_CONNECT)
    {
        refuse(501, "this is no proxy");
        return -1;
    }
    const auto hosts = std::count_if(request_.headers.begin(), request_.headers.end(),
                                     [](const Header& h) { return iequals(h.name, "host"); });
    if (hosts > 1 || (hosts == 0 && !http10_))
    {
        refuse(400, "exactly one Host field is needed");
        return -1;
    }
    strip_authority(request_.target);
    if (plan_body_ != nullptr && *plan_body_) { plan_ = (*plan_body_)(request_); }
    const bool has_body = parser_.content_length > 0 || (parser_.flags & F_CHUNKED) != 0;
    if (!has_body) { return 0; }
    if ((parser_.flags & F_CHUNKED) == 0)
    {
        if (parser_.content_length > plan_.max_body_bytes)
        {
            refuse(413, "the body is over the limit of " + std::to_string(plan_.max_body_bytes) + " bytes");
            return -1;
        }
        if (!plan_.stream) { request_.body.reserve(parser_.content_length); }
    }
    if (const std::string* expect = request_.headers.find("expect"))
    {
        if (!iequals(*expect, "100-continue"))
        {
            refuse(417, "only 100-continue can be expected");
            return -1;
        }
        expects_continue_ = !http10_;
    }
    return 0;
}

bool RequestParser::take_body(std::string_view bytes)
{
    body_bytes_ += bytes.size();
    if (body_bytes_ > plan_.max_body_bytes)
    {
        return refuse(413, "the body is over the limit of " + std::to_string(plan_.max_body_bytes) + " bytes");
    }
    (plan_.stream ? streamed_ : request_.body).append(bytes);
    return true;
}

ResponseParser::ResponseParser(std::size_t max_header_bytes, std::size_t max_body_bytes, bool to_head)
    : MessageParser(HTTP_RESPONSE, max_header_bytes, 1000), max_body_bytes_(max_body_bytes), to_head_(to_head)
{
}

int ResponseParser::head_complete()
{
    status_ = parser_.status_code;
    if (status_ / 100 == 1)
    {
        headers_.clear();
        return 0;
    }
    if ((parser_.flags & F_CONTENT_LENGTH) != 0 && parser_.content_length > max_body_bytes_ && !to_head_)
    {
        too_large_ = true;
        refuse(413, "the body is over the limit of " + std::to_string(max_body_bytes_) + " bytes");
        return -1;
    }
    return to_head_ ? 1 : 0;
}

bool ResponseParser::take_body(std::string_view bytes)
{
    body_bytes_ += bytes.size();
    if (body_bytes_ > max_body_bytes_)
    {
        too_large_ = true;
        return refuse(413, "the body is over the limit of " + std::to_string(max_body_bytes_) + " bytes");
    }
    body_.append(bytes);
    return true;
}

void ResponseParser::finish()
{
    if (complete() || failed()) { return; }
    const llhttp_errno_t code = llhttp_finish(&parser_);
    if (code == HPE_PAUSED) { return; } // from on_message_complete
    if (code != HPE_OK || !complete()) { refuse(400, "the response was cut off"); }
}

} // namespace dstack::http
