"""The screens that need no script: logging in and out, changing one's password. What is put in is escaped."""

from __future__ import annotations

import html

_NOTHING = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"
CONTENT_POLICY = f"{_NOTHING}; style-src 'unsafe-inline'; form-action 'self'"


def login_page(problem: str = "", where: str = "/", name: str = "") -> str:
    """The only page a stranger sees. where: the path to go on to."""
    go_on = f'<input type="hidden" name="next" value="{html.escape(where)}">'
    opened = " open" if "token" in problem else ""
    focus = ("", " autofocus") if name else (" autofocus", "")
    return _page(
        f"""<h1>edgekit fleet</h1>
{_problem(problem)}
<form method="post" action="/login">{go_on}
<label for="name">Name</label>
<input id="name" name="name" value="{html.escape(name)}" autocomplete="username" required{focus[0]}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required{focus[1]}>
<button>Log in</button>
</form>
<details{opened}><summary>With the server's token</summary>
<form method="post" action="/login">{go_on}
<p>The line in <code>api.token</code> in the server's data folder. It is there for the first user to be made with.</p>
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="off" required>
<button>Open the fleet</button>
</form></details>"""
    )


def logout_page() -> str:
    """What a link to the way out shows: only a form may end a session."""
    return _page(
        """<h1>edgekit fleet</h1>
<form method="post" action="/logout"><button>Log out</button></form>
<p class="back"><a href="/">Back to the fleet</a></p>"""
    )


def password_page(name: str, problem: str = "") -> str:
    """A user's own password."""
    return _page(
        f"""<h1>Change your password</h1>
<p>You are {html.escape(name)}. Your other browsers are logged out.</p>
{_problem(problem)}
<form method="post" action="/password">
<input name="name" value="{html.escape(name)}" autocomplete="username" hidden>
<label for="current">Password now</label>
<input id="current" name="current" type="password" autocomplete="current-password" required autofocus>
<label for="new">New password</label>
<input id="new" name="new" type="password" autocomplete="new-password" required>
<label for="again">New password, again</label>
<input id="again" name="again" type="password" autocomplete="new-password" required>
<button>Change it</button>
</form>
<p class="back"><a href="/">Back to the fleet</a></p>"""
    )


def bounce_page() -> str:
    """Asks for the same page again, from this site: a link on another one brought no cookie (SameSite=Strict)."""
    return _page('<p>One moment. <a href="">Go on</a></p>', head='<meta http-equiv="refresh" content="0">')


def said_page(problem: str) -> str:
    """One line that says why not."""
    return _page(
        f'<h1>edgekit fleet</h1>{_problem(problem)}<p class="back"><a href="/">Back to the fleet</a></p>'
    )


def _problem(problem: str) -> str:
    return f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else ""


def _page(body: str, head: str = "") -> str:
    return _FRAME.replace("<!--head-->", head).replace("<!--body-->", body)


_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>edgekit fleet</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<!--head--><style>
:root { --page: #f4f5f7; --card: #fff; --ink: #1b1f24; --dim: #59636e; --line: #d1d9e0; --go: #0b6e4f;
  --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --page: #101418; --card: #191f26; --ink: #e6edf3; --dim: #9aa7b3; --line: #37414b; --go: #1f8a66;
    --bad: #ff8a80 }
}
* { box-sizing: border-box }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
main { width: min(26rem, 92vw); padding: 2rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px }
h1 { margin: 0 0 1rem; font-size: 1.35rem }
p { margin: 0 0 1rem; color: var(--dim); font-size: .925rem }
label { display: block; margin: .8rem 0 .35rem; font-weight: 600; font-size: .925rem }
input, button { width: 100%; padding: .65rem .8rem; font: inherit; border-radius: 8px }
input { border: 1px solid var(--line); background: transparent; color: inherit }
button { margin-top: 1.1rem; border: 0; background: var(--go); color: #fff; font-weight: 600; cursor: pointer }
details { margin-top: 1.5rem; border-top: 1px solid var(--line); padding-top: 1rem }
summary { cursor: pointer; color: var(--dim); font-size: .925rem }
details p { margin: .8rem 0 0 }
a { color: inherit }
.back { margin: 1.25rem 0 0 }
:focus-visible { outline: 2px solid var(--go); outline-offset: 2px }
.problem { color: var(--bad) }
code { font-size: .9em }
</style></head><body>
<main><!--body--></main>
</body></html>
"""
