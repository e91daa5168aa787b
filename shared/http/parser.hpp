#pragma once
#include "shared/http/message.hpp"
#include "shared/http/server.hpp"
#include <llhttp.h>
#include <string_view>

namespace dstack::http
{

/// What the server's and the client's parser share: fields, counted against a limit. No sockets, no clock.
class MessageParser
{
  public:
    MessageParser(const MessageParser&) = delete;
    MessageParser& operator=(const MessageParser&) = delete;

    /// Bytes of this message have been seen.
    bool started() const { return started_; }
    bool head_done() const { return head_done_; }
    bool complete() const { return complete_; }
    bool failed() const { return error_status_ != 0; }
    /// The answer to what was refused: 400, 413, 431, 501, 505; 0 when all is well.
    int error_status() const { return error_status_; }
    const std::string& error_text() const { return error_text_; }

  protected:
    MessageParser(llhttp_type_t type, std::size_t max_header_bytes, std::size_t max_headers);
    virtual ~MessageParser() = default;
    virtual Headers& fields() = 0;
    virtual bool take_start(std::string_view bytes) = 0; ///< of the target or the reason phrase
    virtual int head_complete() = 0;                     ///< llhttp's return value
    virtual bool take_body(std::string_view bytes) = 0;

    std::size_t execute(std::string_view bytes);
    void begin_message();
    bool refuse(int status, std::string text);

    llhttp_t parser_{};

  private:
    friend struct MessageCallbacks;
    bool count(std::size_t bytes);
    std::size_t max_header_bytes_;
    std::size_t max_headers_;
    std::size_t header_bytes_ = 0;
    bool in_value_ = true;
    bool started_ = false;
    bool head_done_ = false;
    bool complete_ = false;
    int error_status_ = 0;
    std::string error_text_;
};

/// Bytes in, requests out.
class RequestParser final : public MessageParser
{
  public:
    RequestParser(const Limits& limits, const PlanBody* plan);

    /// Takes bytes up to the end of one request; returns how many. Call `next` before feeding a further one.
    std::size_t feed(std::string_view bytes) { return execute(bytes); }
    Request& request() { return request_; }
    const BodyPlan& plan() const { return plan_; }
    bool expects_continue() const { return expects_continue_; }
    bool keep_alive() const { return keep_alive_; }
    bool http10() const { return http10_; }
    bool is_head() const { return is_head_; }
    /// The part of a streamed body that came since it was last taken.
    std::string& streamed() { return streamed_; }
    void next();

  private:
    Headers& fields() override { return request_.headers; }
    bool take_start(std::string_view bytes) override;
    int head_complete() override;
    bool take_body(std::string_view bytes) override;
    const Limits& limits_;
    const PlanBody* plan_body_;
    Request request_;
    BodyPlan plan_;
    std::string streamed_;
    std::size_t body_bytes_ = 0;
    bool expects_continue_ = false;
    bool keep_alive_ = false;
    bool http10_ = false;
    bool is_head_ = false;
};

/// Bytes in, one response out; 1xx responses are skipped.
class ResponseParser final : public MessageParser
{
  public:
    ResponseParser(std::size_t max_header_bytes, std::size_t max_body_bytes, bool to_head);
    void feed(std::string_view bytes) { execute(bytes); }
    /// The peer ended: completes a body that had no other end.
    void finish();
    int status() const { return status_; }
    Headers& headers() { return headers_; }
    std::string& body() { return body_; } ///< may be taken piecewise
    bool too_large() const { return too_large_; }

  private:
    Headers& fields() override { return headers_; }
    bool take_start(std::string_view) override { return true; }
    int head_complete() override;
    bool take_body(std::string_view bytes) override;
    std::size_t max_body_bytes_;
    bool to_head_;
    int status_ = 0;
    Headers headers_;
    std::string body_;
    std::size_t body_bytes_ = 0;
    bool too_large_ = false;
};

} // namespace dstack::http
