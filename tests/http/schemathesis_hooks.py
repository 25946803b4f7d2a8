"""What a valid request needs beyond the interface description, for Schemathesis.

The ids in a payload are those of its subject. A time is not in the future. JSON Schema counts 7.0 as an integer;
notify does not.
"""

from __future__ import annotations

from typing import Any

import schemathesis

from notify.topics import Topic

_MESSAGE = {"message_id": 1, "sender_id": 1, "content": "hello", "timestamp": 1}


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.operation.path == "/v1/history" and "before" in (case.query or {}):
        case.query.pop("since", None)  # they exclude each other
    if (
        case.operation.path == "/v1/publish"
        and isinstance(case.body, list)
        and (case.query or {}).get("atomic") == "true"
    ):
        # An atomic list is valid only if each of its messages is.
        valid = {
            "subject": "workspace.1.chat.2.messages",
            "payload": {**_MESSAGE, "workspace_id": 1, "chat_id": 2},
        }
        case.body = [{**one, **valid} for one in case.body]
    if not isinstance(case.body, dict):
        return
    case.body = _whole(case.body)
    if case.operation.path == "/v1/revoke" and case.body.get("before"):
        case.body["before"] = min(case.body["before"], 10**9)  # times in the future are refused
    if case.operation.path == "/v1/broadcast" and isinstance(case.body.get("payload"), dict):
        # All subjects are in one workspace, and of the kind that the payload is for.
        topics = {
            Topic.from_subject(subject)._replace(workspace_id=1, kind="chat")
            for subject in case.body["subjects"]
        }
        case.body["subjects"] = [topic.subject for topic in topics]
        case.body["payload"] = _MESSAGE
    if case.operation.path == "/v1/publish" and "subject" in case.body:
        topic = Topic.from_subject(case.body["subject"])
        payload = case.body["payload"]
        payload["workspace_id"] = topic.workspace_id
        payload["chat_id" if topic.kind == "chat" else "user_id"] = topic.id


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value
