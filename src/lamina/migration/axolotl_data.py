"""Axolotl's data sets: its prompt formats as formats and columns of lamina."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lamina.migration.draft import Draft
from lamina.migration.sources import hub_path, sliced, source
from lamina.migration.turns import role_of

_PREAMBLE = (
    "Below is an instruction that describes a task"
    "{% if input is defined and input %}, paired with an input that provides further context{% endif %}. "
    "Write a response that appropriately completes the request."
)
_INSTRUCTION = "{{ instruction }}{% if input is defined and input %}\n\n### Input:\n{{ input }}{% endif %}"

# Axolotl's text of Alpaca's rows, through lamina's built-in template `alpaca`.
_ALPACA = {"system": _PREAMBLE, "instruction": _INSTRUCTION, "output": "output"}

# Formats with columns of their own: what fills the prompt and the answer.
_QUESTIONS: dict[str, dict[str, str]] = {
    "alpaca_chat.load_qa": {"prompt": "question", "completion": "answer"},
    "alpaca:chat": {
        "prompt": "{{ instruction }}{% if input is defined and input %}\n{{ input }}{% endif %}",
        "completion": "output",
    },
    "alpaca:phi": {
        "prompt": "{{ instruction }}{% if input is defined and input %}\n{{ input }}{% endif %}",
        "completion": "output",
    },
    "alpaca_w_system.load_open_orca": {"system": "system_prompt", "prompt": "question", "completion": "response"},
    "alpaca_w_system": {"system": "system", "prompt": "instruction", "completion": "output"},
    "context_qa": {"prompt": "{{ context }}\n\n{{ question }}", "completion": "answer"},
    "context_qa.load_v2": {"prompt": "{{ context }}\n\n{{ question }}", "completion": "answer"},
    "jeopardy": {"prompt": "{{ category }}: {{ question }}", "completion": "answer"},
    "oasst": {"prompt": "INSTRUCTION", "completion": "RESPONSE"},
    "gpteacher": {
        "prompt": "{{ instruction }}{% if input is defined and input %}\n{{ input }}{% endif %}",
        "completion": "response",
    },
    "reflection": {"prompt": "instruction", "completion": "output"},
    "summarizetldr": {"prompt": "article", "completion": "summary"},
    "explainchoice": {"prompt": "question", "completion": "explanation"},
    "concisechoice": {"prompt": "question", "completion": "explanation"},
}
_CHAT_TYPES = ("chat_template", "chat_template.default", "sharegpt", "sharegpt.load_role", "pygmalion", "")
_PAIRS = ("argilla", "ultra", "prompt_pairs", "icr", "argilla_chat", "intel", "chat_template")

# Settings of a data set that lamina needs not be told.
_KNOWN = {
    "path",
    "name",
    "split",
    "type",
    "ds_type",
    "data_files",
    "field",
    "text_column",
    "shards",
    "field_messages",
    "message_property_mappings",
    "message_field_role",
    "message_field_content",
    "roles",
    "roles_to_train",
    "field_chosen",
    "field_rejected",
    "field_thinking",
    "template_thinking_key",
    "chat_template",
    "train_on_eos",
    "train_on_eot",
    "conversation",
    "trust_remote_code",
    "revision",
    "skip",
    "preprocess_shards",
    "message_field_training",
    "field_tools",
    "field_system",
    "drop_system_message",
    "strict",
    "chat_template_jinja",
}


# The field of a turn that says whether it is in the loss.
_MARK = "train"


class Unreadable(ValueError):
    """A setting of a data set has no counterpart.

    Attributes:
        name: The setting, dotted.
        given: Its value.
    """

    def __init__(self, name: str, given: Any, reason: str) -> None:
        self.name, self.given = name, given
        super().__init__(reason)


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        sources: Items of `data.train`.
        alpaca: Whether its rows are Alpaca's own text rather than a chat.
        plain: Whether its rows are texts that no template renders.
        template: A chat template that it names for itself.
        marked: Whether its turns say themselves which of them are in the loss.
    """

    sources: list[str | dict[str, Any]]
    alpaca: bool = False
    plain: bool = False
    template: str | None = None
    marked: bool = False


def read_source(item: Any, where: str, draft: Draft) -> Source:
    """Reads an item of `datasets`.

    Raises:
        Unreadable: One of its settings has no counterpart.
    """
    if isinstance(item, str):
        item = {"path": item}
    if isinstance(item, Mapping) and where.startswith("pretraining_dataset"):  # the default type there
        item = {**item, "type": item.get("type") or "pretrain"}
    if not isinstance(item, Mapping) or not isinstance(item.get("path"), str):
        raise Unreadable(where, item, "a data set is a mapping with a `path`")
    for name in set(item) - _KNOWN:
        if item[name] not in (None, False):
            raise Unreadable(f"{where}.{name}", item[name], "data sets have no such setting here")
    try:
        split, limits = sliced(item.get("split"))
    except ValueError as error:
        raise Unreadable(f"{where}.split", item["split"], str(error)) from None
    if item.get("revision"):
        raise Unreadable(
            f"{where}.revision", item["revision"], "download that revision, and give the path of its files"
        )
    if item.get("shards"):
        limits = {"weight": 1 / int(item["shards"])}
    if "weight" in limits and item.get("split"):
        draft.own(f"{where}.split", item["split"], "that share of the rows, drawn by seed, not the first ones")
    settings, alpaca = _format(item, where)
    listed = [source(path, **settings, **limits) for path in _paths(item, split)]
    template = item.get("chat_template_jinja") or item.get("chat_template")
    kind = item.get("type")
    if isinstance(kind, Mapping) and kind.get("system_prompt") and kind.get("field_system"):
        draft.own(f"{where}.type.system_prompt", kind["system_prompt"], "field_system decides, there as here")
    named = None if template in (None, "tokenizer_default") else str(template)
    return Source(listed, alpaca, isinstance(kind, Mapping), named, _is_marked(item))


def _paths(item: Mapping[str, Any], split: str | None) -> list[str]:
    files = item.get("data_files")
    if files:
        names = [files] if isinstance(files, str) else list(files)
        folder = str(item["path"])
        loaders = ("json", "csv", "parquet", "arrow", "text")
        return [name if folder in loaders or name.startswith(folder) else f"{folder}/{name}" for name in names]
    path = str(item["path"])
    looks_local = path.startswith((".", "/", "~")) or path.rpartition(".")[2] in (
        "json",
        "jsonl",
        "csv",
        "parquet",
        "txt",
        "arrow",
    )
    return [path if looks_local else hub_path(path, item.get("name"), split)]


def _format(item: Mapping[str, Any], where: str) -> tuple[dict[str, Any], bool]:
    """Returns the format and columns of a data set, and whether its rows are Alpaca's own text."""
    kind = item.get("type")
    if isinstance(kind, Mapping):
        return _user_defined(kind, where), False
    name = str(kind or "")
    if name in ("alpaca", "alpaca:instruct") or name.startswith("alpaca:instruct"):
        return {"format": "alpaca", "columns": dict(_ALPACA)}, True
    if name in _QUESTIONS:
        return {"format": "prompt_completion", "columns": dict(_QUESTIONS[name])}, False
    if name.partition(":")[0] in ("completion", "pretrain"):
        field = item.get("field") or item.get("text_column") or "text"
        return {"format": "text", **({"columns": {"text": field}} if field != "text" else {})}, False
    family, _, variant = name.partition(".")
    if item.get("field_chosen") or item.get("field_rejected") or variant in _PAIRS or family == "bradley_terry":
        return _preference(item, where, variant), False
    if name in _CHAT_TYPES or family == "sharegpt":
        return _chat(item, where), False
    if variant == "load" and family in ("alpaca_chat",):
        return {"format": "alpaca", "columns": dict(_ALPACA)}, True
    raise Unreadable(f"{where}.type", kind, "this format has no counterpart; fill the fields with `columns`")


def _chat(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    mapping = item.get("message_property_mappings") or {}
    role = mapping.get("role") or item.get("message_field_role") or "role"
    content = mapping.get("content") or item.get("message_field_content") or "content"
    if role not in ("role", "from") or content not in ("content", "value"):
        raise Unreadable(
            f"{where}.message_property_mappings", mapping, "turns have `role` or `from`, `content` or `value`"
        )
    _check_turns(item, where)
    field = item.get("field_messages") or (
        "conversations" if str(item.get("type")).startswith("sharegpt") else "messages"
    )
    columns: dict[str, str] = {} if field == "messages" else {"messages": field}
    if item.get("drop_system_message"):
        columns = {"messages": f"{{{{ {field} | rejectattr('{role}', 'equalto', 'system') | list | tojson }}}}"}
    if item.get("field_system") and item["field_system"] != "system":
        columns["system"] = item["field_system"]
    if item.get("field_tools") and item["field_tools"] != "tools":
        columns["tools"] = item["field_tools"]
    if columns and "messages" not in columns:
        columns = {"messages": field, **columns}
    return {"format": "messages", "columns": columns}


def _is_marked(item: Mapping[str, Any]) -> bool:
    """Returns whether no role is in the loss, but turns that are marked: `_check_turns` has found the marks."""
    return item.get("roles_to_train") == [] and item.get("message_field_training") == _MARK


def _check_turns(item: Mapping[str, Any], where: str) -> None:
    trained, mark = item.get("roles_to_train"), item.get("message_field_training")
    if mark and mark != _MARK:
        reason = f"a turn says in `{_MARK}` whether it is in the loss; rename the field in the rows"
        raise Unreadable(f"{where}.message_field_training", mark, reason)
    if trained == [] and not mark:
        reason = (
            f"no turn would be in the loss; `message_field_training: {_MARK}` takes the turns that are marked, and "
            "without roles_to_train all answers are in it"
        )
        raise Unreadable(f"{where}.roles_to_train", trained, reason)
    if trained and [str(each) for each in trained] not in (
        ["assistant"],
        ["gpt"],
        ["assistant", "gpt"],
        ["gpt", "assistant"],
    ):
        raise Unreadable(f"{where}.roles_to_train", trained, "answers are in the loss, or everything (`train_on: all`)")
    if item.get("train_on_eos") not in (None, "turn"):
        raise Unreadable(
            f"{where}.train_on_eos", item["train_on_eos"], "each answer's stop token is in the loss with it"
        )
    for role, names in (item.get("roles") or {}).items():
        wanted = role_of(str(role))
        others = sorted(name for name in map(str, names) if not wanted or role_of(name) != wanted)
        if others:
            reason = f"turns of {', '.join(others)} are not read as those of {role}; rename the roles in the rows"
            raise Unreadable(f"{where}.roles.{role}", names, reason)
    thinking = item.get("field_thinking")
    if thinking and thinking not in ("reasoning_content", "thinking"):
        raise Unreadable(f"{where}.field_thinking", thinking, "reasoning is in `reasoning_content` or `thinking`")


def _preference(item: Mapping[str, Any], where: str, variant: str) -> dict[str, Any]:
    mapping = item.get("message_property_mappings") or {}
    if mapping.get("role", "role") not in ("role", "from") or mapping.get("content", "content") not in (
        "content",
        "value",
    ):
        raise Unreadable(
            f"{where}.message_property_mappings", mapping, "turns have `role` or `from`, `content` or `value`"
        )
    columns: dict[str, str] = {}
    for given, field in (("field_chosen", "chosen"), ("field_rejected", "rejected"), ("field_messages", "messages")):
        if item.get(given) and item[given] != field:
            columns[field] = str(item[given])
    if variant == "intel":
        columns = {"prompt": "question", "system": "system"}
    if columns:
        own = {"chosen": "chosen", "rejected": "rejected"}
        if item.get("field_messages"):
            own["messages"] = "messages"
        columns = {**own, **columns}
    kto = "label" in str(item.get("type")) or str(item.get("type")).startswith("kto")
    return {} if kto else {"format": "preference", "columns": columns} if variant != "ultra" else {}


def _user_defined(kind: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A format of the user's own: `{field_instruction, field_input, field_output, format, no_input_format}`."""
    system, form = kind.get("field_system"), kind.get("system_format")
    if system and form not in (None, "", "{system}"):
        raise Unreadable(f"{where}.type.system_format", form, "fill the fields with `columns`")
    instruction, given = kind.get("field_instruction") or "instruction", kind.get("field_input") or "input"
    answer = kind.get("field_output") or "output"
    has_input = f"{given} is defined and {given}"
    with_input = _filled(str(kind.get("format") or "{instruction} {input}"), instruction, given)
    without = _filled(str(kind.get("no_input_format") or kind.get("format") or "{instruction}"), instruction, given)
    prompt = (
        with_input if with_input == without else f"{{% if {has_input} %}}{with_input}{{% else %}}{without}{{% endif %}}"
    )
    columns = {"prompt": prompt, "completion": str(answer)}
    if kind.get("field_prompt") or kind.get("field_completion"):
        columns = {
            "prompt": str(kind.get("field_prompt") or "prompt"),
            "completion": str(kind.get("field_completion") or answer),
        }
    if kind.get("system_prompt") and not system and form != "":  # an empty format leaves it out
        before = _literal(str(form or "{system}").replace("{system}", str(kind["system_prompt"])))
        if "{{" not in columns["prompt"]:
            columns["prompt"] = f"{{{{ {columns['prompt']} }}}}"
        columns["prompt"] = f"{before}{columns['prompt']}"
    return {"format": "prompt_completion", "columns": {**({"system": str(system)} if system else {}), **columns}}


def _literal(text: str) -> str:
    """Returns a text as a part of a Jinja template, which writes it as it is."""
    return f"{{% raw %}}{text}{{% endraw %}}" if "{" in text else text


def _filled(text: str, instruction: str, given: str) -> str:
    return text.replace("{instruction}", f"{{{{ {instruction} }}}}").replace("{input}", f"{{{{ {given} }}}}")
