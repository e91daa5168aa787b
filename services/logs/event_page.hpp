#pragma once
#include <string_view>

namespace dstack::logs
{

/// GET / of the event listener: follows /events in a browser. It holds nothing and needs no token; whoever opens it types the
/// token in, which stays in the page. Events are shown as text, never as markup.
inline constexpr std::string_view event_page = R"html(<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>dstack events</title>
<style>
body { font: 14px monospace; margin: 1em }
input { font: inherit }
#events div { white-space: pre-wrap; border-top: 1px solid #ddd }
.warning { background: #fff3cd } .error, .gap { background: #f8d7da } .debug { color: #777 }
</style>
<form id="form">
<input id="token" type="password" placeholder="token" autocomplete="off" required>
<input id="type" placeholder="type, such as vm.">
<input id="from" value="now" size="12" title="0, now, a cursor or a time">
<button>follow</button> <span id="state" role="status"></span>
</form>
<div id="events"></div>
<script>
const at = id => document.getElementById(id);
let source = null;
function show(text, kind) {
  const row = document.createElement("div");
  row.textContent = text;
  row.className = kind;
  at("events").prepend(row);
  while (at("events").childElementCount > 1000) at("events").lastElementChild.remove();
}
at("form").addEventListener("submit", event => {
  event.preventDefault();
  if (source) source.close();
  at("events").replaceChildren();
  const query = new URLSearchParams({ type: at("type").value, from: at("from").value, access_token: at("token").value });
  source = new EventSource("/events?" + query);
  source.onopen = () => { at("state").textContent = "connected"; };
  source.onerror = () => { at("state").textContent = source.readyState === 2 ? "refused" : "connecting again"; };
  source.onmessage = message => {
    const data = JSON.parse(message.data);
    show(data.time + " " + data.severity + " " + data.type + " " + (data.subject || "-") + " " + JSON.stringify(data.data), data.severity);
  };
  source.addEventListener("gap", message => {
    const gap = JSON.parse(message.data);
    show("events " + gap.from + " to " + gap.to + " are missing: " + gap.reason, "gap");
  });
  source.addEventListener("caught_up", () => { at("state").textContent = "live"; });
});
</script>
</html>
)html";

} // namespace dstack::logs
