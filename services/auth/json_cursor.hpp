#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::auth
{

/// Walks one JSON text from front to back, without a copy or a tree of it: a policy of a hundred thousand apps costs its
/// text and what is kept of it. Strict (RFC 8259), UTF-8, at most 16 levels. The first mistake stops the walk: from then
/// on everything says false, and `complaint` says what it was, and in which line.
///
///     cursor.enter_object();
///     while (cursor.next_key(key)) { cursor.read(value); }   // each value is read, entered or skipped
///     cursor.end();
///     if (cursor.failed()) { ... cursor.complaint() ... }
class JsonCursor
{
  public:
    enum class Places
    {
        lines, ///< complaints about values end in "(line 7)"
        none   ///< for texts that nobody edits
    };
    /// `text` outlives the cursor. `root` names the whole in complaints.
    JsonCursor(std::string_view text, std::string_view root, Places places = Places::lines);

    enum class Type
    {
        none, ///< after a mistake
        object,
        array,
        string,
        number,
        boolean,
        null
    };
    /// Of the value that comes next.
    Type type();

    bool enter_object();
    /// False at the end of the object, which is left then. The key lives until the next text is read.
    bool next_key(std::string_view& key);
    bool enter_array();
    bool next_item();
    bool read(std::string_view& text); ///< lives until the next text is read
    bool read(bool& value);
    bool read(std::uint64_t& value); ///< a whole number that is not negative
    bool skip();
    /// Nothing but whitespace may follow.
    bool end();

    bool failed() const { return failed_; }
    /// "apps.1111.devices[2]: must be ... (line 7)" or "no valid JSON at line 2, column 16".
    const std::string& complaint() const { return complaint_; }
    /// A complaint about the value or the key that was read last, or comes next.
    bool refuse(std::string_view why);
    /// Its object has this key already.
    bool refuse_twice(std::string_view key);
    /// "must be <wanted>, not an array".
    bool refuse_type(std::string_view wanted);
    /// "apps.1111.devices[2]"; the root's name at the top.
    std::string path() const;
    std::size_t line() const;

  private:
    struct Frame
    {
        bool is_object = false;
        bool first = true;
        std::string key;
        std::size_t index = 0;
    };
    static constexpr std::size_t max_depth = 16;
    bool enter(char bracket, bool is_object, std::string_view wanted);
    bool next(char bracket);
    bool broken(std::string_view why = {});
    bool word(std::string_view expected);
    bool take_string(std::string_view& text);
    bool take_escape();
    bool take_hex4(std::uint32_t& out);
    bool skip_number();
    void skip_space();
    char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }
    std::string joined(std::size_t depth) const;
    void complain(std::string text);

    std::string_view text_;
    std::string_view root_;
    Places places_;
    std::size_t position_ = 0;
    mutable std::size_t counted_to_ = 0; ///< newlines before this offset are in `newlines_`
    mutable std::size_t newlines_ = 0;
    std::size_t value_at_ = 0; ///< of the value or key that was looked at last
    std::array<Frame, max_depth> frames_{};
    std::size_t depth_ = 0;
    std::string scratch_; ///< a text with escapes, decoded
    bool failed_ = false;
    std::string complaint_;
};

} // namespace dstack::auth
