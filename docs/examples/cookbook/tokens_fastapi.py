from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Request, Response
from notify_tokens import make_token

router = APIRouter()


def session_user(request: Request) -> int:
    """Whose session it is: your application has this already."""
    user_id = request.session.get("user_id")
    if user_id is None:
        raise HTTPException(401, "sign in")
    return user_id


@router.post("/notify/token")
def token(
    response: Response,
    user_id: Annotated[int, Depends(session_user)],
    x_requested_with: Annotated[str | None, Header()] = None,
):
    if x_requested_with is None:  # a page of another site cannot send it without asking first
        raise HTTPException(403, "send X-Requested-With")
    response.headers["Cache-Control"] = "no-store"
    return make_token(user_id, workspace_id=1)
