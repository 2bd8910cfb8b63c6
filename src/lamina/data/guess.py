"""Columns by their usual names, in any case and several languages: `Question` and `Answer`, `Frage` and `Antwort`.

They are only used if no format matches the columns as they are and `data.columns` is not given. The report says which
columns were taken for which fields.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

# Field -> usual names: lower case, without accents, spaces and punctuation (see `_plain`).
_NAMES = {
    "prompt": (
        "prompt question query request frage pregunta domanda pergunta vraag fraga sporgsmal sporsmal kysymys pytanie "
        "otazka kerdes intrebare soru cauhoi pertanyaan вопрос питання ερωτηση שאלה سؤال प्रश्न 问题 問題 質問 질문"
    ),
    "completion": (
        "completion answer response reply antwort respuesta reponse risposta resposta antwoord svar vastaus odpowiedz "
        "odpoved valasz raspuns cevap yanit traloi jawaban ответ відповідь απαντηση תשובה جواب إجابة उत्तर 答案 回答 "
        "答え 답변"
    ),
    "instruction": (
        "instruction instructions anweisung instruccion istruzione instrucao instructie instruktion polecenie "
        "инструкция 指令 指示"
    ),
    "input": "input context eingabe kontext entrada contexto entree contexte contesto invoer wejscie kontekst контекст",
    "output": "output ausgabe salida sortie uscita saida uitvoer wyjscie",
    "text": "text texte texto testo tekst document documento dokument текст 文本 テキスト",
    "system": "system systemprompt systemmessage",
    "messages": "messages conversation dialogue",
    "conversations": "conversations",
    "chosen": "chosen preferred",
    "rejected": "rejected dispreferred",
    "label": "label",
}


def guess_columns(columns: Iterable[str]) -> dict[str, str] | None:
    """Returns a column mapping by the usual names; None if there is none, or two columns have the same meaning.

    >>> guess_columns(["ID", "Frage", "Antwort"])
    {'prompt': 'Frage', 'completion': 'Antwort'}
    """
    found: dict[str, str] = {}
    for column in columns:
        field = _FIELD_OF.get(_plain(column))
        if field is not None and field in found:
            return None
        if field is not None:
            found[field] = column
    return _of_one_format(found)


def text_and_label(columns: Iterable[str]) -> dict[str, str] | None:
    """Returns the columns of texts and of their labels, by the fields `text` and `label`; None without both, or with
    others that a format reads.

    >>> text_and_label(["id", "Text", "Label"])
    {'text': 'Text', 'label': 'Label'}
    """
    named = [(_FIELD_OF[plain], column) for column in columns if (plain := _plain(str(column))) in _FIELD_OF]
    found = dict(named)
    return found if len(named) == 2 and set(found) == {"text", "label"} else None


def guess_notes(name: str, mapping: Mapping[str, str]) -> list[str]:
    """Returns messages to the user about a mapping that was found in a file."""
    if not mapping:
        return []
    read = ", ".join(f"{column!r} as {field}" for field, column in mapping.items())
    return [f"{name}: by the columns' names, reads {read}; data.columns sets others"]


def _of_one_format(found: Mapping[str, str]) -> dict[str, str] | None:
    """Returns the fields of the format that has most of what was found."""
    asked = next((found[name] for name in ("instruction", "prompt") if name in found), None)
    answer = next((found[name] for name in ("output", "completion") if name in found), None)
    system = {"system": found["system"]} if "system" in found else {}
    if "chosen" in found and "rejected" in found:
        return {name: found[name] for name in ("prompt", "chosen", "rejected", "system") if name in found}
    for name in ("messages", "conversations"):
        if name in found:
            return {name: found[name], **system}
    if answer is not None and "input" in found:
        if asked is None:
            return {"prompt": found["input"], "completion": answer, **system}
        return {"instruction": asked, "input": found["input"], "output": answer, **system}
    if asked is not None and answer is not None:
        label = {"label": found["label"]} if "label" in found else {}
        return {"prompt": asked, "completion": answer, **system, **label}
    return {"text": found["text"]} if "text" in found and asked is None and answer is None else None


def _plain(name: str) -> str:
    parts = unicodedata.normalize("NFKD", name.casefold().replace("ø", "o").replace("ł", "l"))
    return "".join(part for part in parts if part.isalnum())


_FIELD_OF = {_plain(word): field for field, words in _NAMES.items() for word in words.split()}
