"""Login in the rs-tunnel dialect: the terminal's calls, and the page on which a person approves.

The page asks for an API token each time and keeps nothing, so there is no session of the browser's that another
site could use. Its forms are bound to it all the same: a cookie that only this site sends, and a field made from it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from html import escape
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from quart import Blueprint, Response, request

from rustunnel_py.api import rs_tunnel_shapes as shapes
from rustunnel_py.api.caller import peer
from rustunnel_py.api.pages import page
from rustunnel_py.api.rs_tunnel_shapes import Invalid, answer, parse_body, parse_optional_body
from rustunnel_py.errors import BadCredentials, Denied, Forbidden
from rustunnel_py.hub.logins import Fault, FlowState, LoginRefused
from rustunnel_py.model.access import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.api.caller import Doorkeeper
    from rustunnel_py.hub.logins import Flow, Logins
    from rustunnel_py.model.access import Caller

COOKIE = "rustunnel_approval"
COOKIE_SECONDS = 900  # a login waits ten minutes
FORM_MAX = 16 * 1024

_APPROVE = "/v1/auth/approve"
_KEY = secrets.token_bytes(32)  # of this process; a page that is older than it asks to be loaded again

_FAULTS: dict[Fault, tuple[int, str]] = {
    Fault.UNKNOWN_STATE: (400, "INVALID_STATE"),
    Fault.OVER: (400, "OAUTH_ALREADY_USED"),
    Fault.EXPIRED: (400, "OAUTH_EXPIRED"),
    Fault.TOO_MANY: (503, "LOGIN_UNAVAILABLE"),
    Fault.UNKNOWN_CODE: (400, "INVALID_LOGIN_CODE"),
    Fault.USED_CODE: (400, "LOGIN_CODE_USED"),
    Fault.EXPIRED_CODE: (400, "LOGIN_CODE_EXPIRED"),
    Fault.WRONG_VERIFIER: (400, "INVALID_CODE_VERIFIER"),
    Fault.NO_SUCH_USER: (404, "USER_NOT_FOUND"),
    Fault.WRONG_REFRESH_TOKEN: (401, "INVALID_REFRESH_TOKEN"),
}
_STATUS: dict[FlowState, Literal["pending", "authorized", "expired"]] = {
    FlowState.PENDING: "pending",
    FlowState.APPROVED: "authorized",
    FlowState.REFUSED: "expired",
    FlowState.HANDED_OVER: "expired",
}


class CallbackRefused(Denied):
    status = 400

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def show_fault(fault: Fault) -> tuple[int, str]:
    """Status and code of what went wrong in a login."""
    return _FAULTS[fault]


def login_routes(api: Blueprint, logins: Logins, doorkeeper: Doorkeeper, caller: Callable[[], Caller]) -> None:
    """Add the routes under /v1/auth."""

    @api.post("/v1/auth/slack/start")
    async def login_start() -> Response:
        wanted = await parse_body(shapes.LoginWanted)
        flow = logins.start(wanted.email, wanted.code_challenge, wanted.cli_callback_url, peer())
        origin = doorkeeper.origin or f"{request.scheme}://{request.host}"
        return answer(shapes.LoginShown(f"{origin}{_APPROVE}?{urlencode({'state': flow.state})}", flow.state))

    @api.post("/v1/auth/slack/status")
    async def login_status() -> Response:
        wanted = await parse_body(shapes.StatusWanted)
        progress, code = logins.hand_over(wanted.state)
        return answer(shapes.StatusShown(_STATUS[progress], None if code is None else code.reveal()))

    @api.post("/v1/auth/exchange")
    async def login_exchange() -> Response:
        wanted = await parse_body(shapes.ExchangeWanted)
        return answer(shapes.show_pair(await logins.exchange(Secret(wanted.login_code), wanted.code_verifier, peer())))

    @api.post("/v1/auth/refresh")
    async def login_refresh() -> Response:
        wanted = await parse_body(shapes.RefreshWanted)
        return answer(shapes.show_pair(await logins.refresh(Secret(wanted.refresh_token), peer())))

    @api.post("/v1/auth/logout")
    async def log_out() -> Response:
        wanted = await parse_optional_body(shapes.LogoutWanted)
        # Empty counts as not given.
        token = Secret(wanted.refresh_token) if wanted is not None and wanted.refresh_token else None
        await logins.log_out(caller(), token, peer())
        return answer(shapes.OkShown())

    @api.get("/v1/auth/slack/callback")
    async def callback() -> Response:
        """Where upstream's Slack sends a browser back to. Nothing here sends it there; whoever comes is told what is
        wrong with the link, or shown the page that approves.
        """
        given = request.args
        if "error" in given:
            raise CallbackRefused("SLACK_OAUTH_DENIED", "The login was denied.")
        if not given.get("state") or not given.get("code"):
            raise CallbackRefused("MISSING_OAUTH_PARAMS", "The link has no state, or no code.")
        flow = logins.pending(given["state"])
        response = Response("", 303)
        response.headers["Location"] = f"{_APPROVE}?{urlencode({'state': flow.state})}"
        return response

    @api.get(_APPROVE)
    async def approval() -> Response:
        try:
            flow = logins.pending(request.args.get("state", ""))
        except LoginRefused as error:
            return show_refusal(str(error), show_fault(error.fault)[0])
        known = request.cookies.get(COOKIE, "")
        cookie = known if len(known) == 43 else secrets.token_urlsafe(32)
        response = show_approval(flow, _bound(cookie, flow.state))
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=COOKIE_SECONDS,
            path=_APPROVE,
            secure=request.scheme == "https" or (doorkeeper.origin or "").startswith("https:"),
            httponly=True,
            samesite="Strict",
        )
        return response

    @api.post(_APPROVE)
    async def answer_approval() -> Response:
        form = await parse_form()
        state = form.get("state", "")
        try:
            _check_form(form, state, doorkeeper.origin)
            if form.get("answer") == "refuse":
                logins.refuse(state, peer())
                return page("Login refused", "<p>The terminal is told. You may close this page.</p>")
            flow = await logins.approve(state, Secret(form.get("token", "").strip()), peer())
        except BadCredentials:
            flow = logins.pending(state)
            return show_approval(flow, form["bound"], "This token is not valid here.", 403)
        except LoginRefused as error:
            return show_refusal(str(error), show_fault(error.fault)[0])
        except Denied as error:
            return show_refusal(str(error), error.status)
        text = "<p>The terminal goes on by itself. You may close this page.</p>"
        if flow.callback is None:
            return page("Login approved", text)
        query = urlencode({"code": logins.code_of(flow).reveal(), "state": flow.state})
        return page("Login approved", text, onward=f"{flow.callback}{'&' if '?' in flow.callback else '?'}{query}")


def _bound(cookie: str, state: str) -> str:
    return hmac.new(_KEY, f"{cookie} {state}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _check_form(form: dict[str, str], state: str, our_origin: str | None) -> None:
    """That this server's own page sent it, in this browser. Raises Forbidden."""
    origin = request.headers.get("Origin")
    if origin is not None and not _is_ours(origin, our_origin):
        raise Forbidden("This form was sent from another site.")
    expected = _bound(request.cookies.get(COOKIE, ""), state)
    if not hmac.compare_digest(form.get("bound", "").encode("utf-8", "surrogatepass"), expected.encode()):
        raise Forbidden("This page is too old, or cookies are off; open the link from the terminal again.")


def _is_ours(origin: str, our_origin: str | None) -> bool:
    """Whether a page of this origin is ours: of the Host that was asked, or, since a proxy may have changed that, of
    server.dashboard_origin.

    https will do where http is expected: a proxy need not say that it encrypts. Not the other way round: what came
    unencrypted may be anybody's.
    """
    try:
        site = urlsplit(origin)
    except ValueError:
        return False
    for expected in (f"{request.scheme}://{request.host}", our_origin or ""):
        scheme, _, place = expected.lower().partition("://")
        if place and site.scheme in (scheme, "https") and _bare(site.netloc, site.scheme) == _bare(place, site.scheme):
            return True
    return False


def _bare(place: str, scheme: str) -> str:
    """A host in lower case, without the port that goes without saying."""
    return place.lower().removesuffix(":443" if scheme == "https" else ":80")


async def parse_form() -> dict[str, str]:
    """The fields of a form; the first of each name. Raises Invalid."""
    if request.mimetype != "application/x-www-form-urlencoded":
        raise Invalid("", "A form is wanted.", 415)
    body = await request.get_data(as_text=False)
    assert isinstance(body, bytes)
    if len(body) > FORM_MAX:
        raise Invalid("", "The form is too long.", 413)
    try:
        fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=16)
    except ValueError:
        raise Invalid("", "This is no form.") from None
    return dict(reversed(fields))


def show_approval(flow: Flow, bound: str, problem: str = "", status: int = 200) -> Response:
    told = f'<p class="problem" role="alert">{escape(problem)}</p>' if problem else ""
    body = f"""<div class="sheet">
<p>The rs-tunnel program wants to open tunnels on this server in your name.</p>
<dl>
<dt>For</dt><dd>{escape(flow.email)}</dd>
<dt>Asked from</dt><dd>{escape(flow.peer.ip or "unknown")}</dd>
</dl>
<p class="warning">Approve only if you started this login yourself, just now. Whoever started it gets what the token
allows.</p>
{told}
<form method="post" action="{_APPROVE}" autocomplete="off">
<input type="hidden" name="state" value="{escape(flow.state)}">
<input type="hidden" name="bound" value="{escape(bound)}">
<input type="text" name="username" value="{escape(flow.email)}" autocomplete="username" hidden>
<label for="token">Your API token</label>
<input id="token" name="token" type="password" autocomplete="current-password" autocapitalize="none" spellcheck="false">
<div class="actions">
<button name="answer" value="approve">Approve</button>
<button class="other" name="answer" value="refuse">Refuse</button>
</div>
</form>
</div>
<p class="quiet">The token is checked and not kept. Your terminal gets one of its own, which you can end with
<code>rs-tunnel logout</code>.</p>"""
    return page("Approve a login", body, status)


def show_refusal(message: str, status: int) -> Response:
    return page("This login cannot go on", f'<p class="problem">{escape(message)}</p>', status)
