"""Protobuf schemas: .proto texts compiled by protoc, and descriptor sets; the message that values are of."""

import base64
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from pipelines.boundary.extras import extra

DESCRIPTOR_SET = "descriptor-set:"
"""How the text of a descriptor set starts; base64 follows."""
_MAIN = "karmalake_main.proto"


def descriptor_set_text(content: bytes) -> str:
    """Return the content of a .desc file as a text."""
    return DESCRIPTOR_SET + base64.b64encode(content).decode()


def message_type(text: str, message: str, references: Iterable[tuple[str, str]]) -> Any:
    """Return the descriptor of a message: its full name, its indexes ("1,0"), or "" for the first of the main file.

    Raises ValueError for an invalid schema, or one without that message.
    """
    if text.startswith(DESCRIPTOR_SET):
        files = FileDescriptorSet.FromString(base64.b64decode(text.removeprefix(DESCRIPTOR_SET)))
    else:
        files = _compile(text, references)
    pool = DescriptorPool()
    for file in files.file:
        pool.Add(file)  # pyright: ignore[reportUnknownMemberType]
    main: Any = pool.FindFileByName(files.file[-1].name)
    if message and not message[0].isdigit():
        try:
            return pool.FindMessageTypeByName(message)
        except KeyError:
            known = ", ".join(sorted(each.full_name for each in main.message_types_by_name.values()))
            raise ValueError(f"there is no message {message}; the file has {known}") from None
    return _by_indexes(main, [int(number) for number in (message or "0").split(",")])


def _by_indexes(file: Any, indexes: list[int]) -> Any:
    found = list(file.message_types_by_name.values())[indexes[0]]
    for index in indexes[1:]:
        found = found.nested_types[index]
    return found


def _compile(text: str, references: Iterable[tuple[str, str]]) -> FileDescriptorSet:
    with extra("proto", "a Protobuf schema"):
        import grpc_tools  # noqa: PLC0415
        from grpc_tools import protoc  # noqa: PLC0415

    included = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        for name, content in [*references, (_MAIN, text)]:
            path = Path(os.path.normpath(Path(folder, name)))
            if not path.is_relative_to(folder):
                raise ValueError(f"the name of a file that it imports leads elsewhere: {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        out, errors, main = Path(folder, "out.desc"), Path(folder, "errors.txt"), str(Path(folder, _MAIN))
        options = [f"-I{folder}", f"-I{included}", "--include_imports", f"--descriptor_set_out={out}"]
        code = _quiet(protoc.main, ["protoc", *options, main], errors)
        if code:
            raise ValueError(errors.read_text(errors="replace").replace(f"{folder}/", "").replace(_MAIN, "line")[:400])
        return FileDescriptorSet.FromString(out.read_bytes())


def _quiet(run: Callable[[list[str]], int], arguments: list[str], errors: Path) -> int:
    """Run protoc, which writes its errors to the descriptor of stderr."""
    saved = os.dup(2)
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
        try:
            return run(arguments)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
