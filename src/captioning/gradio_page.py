"""Build and serve the page with gradio, but without its network calls: no analytics, no fonts or scripts of others."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import gradio as gr
from gradio import processing_utils
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

from src.captioning.page import PARTS, Shown, attention_strip, choices, picture_url
from src.data.photographs import MAX_PIXELS, UnusableImage
from src.runtime.errors import InputError

if TYPE_CHECKING:
    from src.captioning.serve import PageModel

MAX_UPLOAD = 20_000_000  # bytes: phones write 2 to 12 million
_KEEP = 600  # seconds until an upload is deleted
_SESSIONS = 100  # that keep their last photograph in memory, about 1 MB each
# Allow only this host; gradio's script uses eval, and styles and pictures are inline.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; frame-ancestors 'self'"
_CSS = Path(__file__).with_name("page.css")
_FOREIGN = re.compile(rb'<(link|script)\b[^>]*(?:href|src)="https?://[^>]*>(?:\s*</script>)?')


def build_page(model: "PageModel") -> gr.Blocks:
    """Build the page: a file to drop, the captions of all checkpoints, and the attention of the selected caption."""

    def caption(path: str | None) -> tuple[Any, ...]:
        nothing = ("", gr.Dropdown(visible=False), "", None)
        if path is None:
            return "", *nothing
        try:
            shown = model.show(path)
        except UnusableImage as reason:
            return PARTS.failure(reason), *nothing
        names = gr.Dropdown(choices=choices(shown.captions), value=0, visible=True)
        picture = PARTS.photograph(picture_url(shown.small))
        return picture, PARTS.captions_table(shown.captions), names, attention_strip(shown, 0), shown

    def look(choice: int | None, shown: Shown | None) -> str:
        return "" if shown is None or choice is None else attention_strip(shown, choice)

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")  # gradio's is too pale
    with gr.Blocks(
        title="Captions", theme=theme, css_paths=_CSS, analytics_enabled=False, delete_cache=(60, _KEEP)
    ) as page:
        gr.HTML(PARTS.heading(model.names, MAX_UPLOAD // 1_000_000, MAX_PIXELS // 1_000_000), padding=False)
        shown = gr.State(time_to_live=_KEEP)
        with gr.Row():
            with gr.Column(scale=1, min_width=240):
                file = gr.File(label="Photograph", type="filepath", height=150)
                picture = gr.HTML()
            with gr.Column(scale=3):
                table = gr.HTML()
        chosen = gr.Dropdown(
            label="Attention of each word of a caption",
            info="Darker cells received less attention. Point at a picture to see numbers.",
            visible=False,
            interactive=True,
        )
        looks = gr.HTML()
        outputs = [picture, table, chosen, looks, shown]
        file.change(caption, file, outputs, api_name=False, concurrency_limit=1)
        chosen.input(look, [chosen, shown], looks, api_name=False)
    return page


def refuse_url(*_: Any, **__: Any) -> NoReturn:
    """Replace the function with which gradio fetches a URL that a client sends instead of an upload."""
    raise gr.Error("Only uploads are captioned, not URLs.")


def serve_page(model: "PageModel", host: str, port: int) -> gr.Blocks:
    """Start the server in a thread of its own. Errors: InputError if host or port is not available."""
    processing_utils.async_ssrf_protected_download = refuse_url
    page = build_page(model).queue(max_size=20)
    private = {"share": False, "ssr_mode": False, "show_api": False, "quiet": True, "prevent_thread_lock": True}
    limits = {"max_file_size": MAX_UPLOAD, "state_session_capacity": _SESSIONS}
    middleware = {"middleware": [Middleware(OwnHostOnly)]}
    try:
        page.launch(server_name=host, server_port=port, app_kwargs=middleware, **private, **limits)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot serve on {host}:{port} ({error}); pass another --host or --port") from None
    return page


class OwnHostOnly(BaseHTTPMiddleware):
    """Remove links to other hosts from pages, and forbid the browser to contact other hosts."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Forward one request, and change its response."""
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        if response.headers.get("content-type", "").startswith("text/html"):
            page = b"".join([part async for part in response.body_iterator])
            del response.headers["content-length"]  # of the page with the links
            return Response(_FOREIGN.sub(b"", page), response.status_code, response.headers)
        return response
