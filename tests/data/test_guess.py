"""Columns by their usual names: every spelling, no guess where two columns claim a field, and mapped data unchanged."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lamina.config import SourceConfig
from lamina.data.guess import guess_columns
from lamina.data.read import find_files
from lamina.data.source import SourceReader, used_examples
from lamina.errors import DataError


def read(path: Path, **settings: dict[str, str]) -> tuple[list[tuple[str, str]], SourceReader]:
    (file,) = find_files(str(path))
    reader = SourceReader(file, SourceConfig(path=str(path), **settings))
    rows = [row.example for row in used_examples(reader)]
    return [(example.prompt[-1].content, example.answer) for example in rows if example is not None], reader


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["Question", "Answer"], ["prompt", "completion"]),
        (["QUESTION ", "answer", "id"], ["prompt", "completion"]),
        (["Frage", "Antwort"], ["prompt", "completion"]),
        (["Pregunta", "Respuesta"], ["prompt", "completion"]),
        (["Question", "Réponse"], ["prompt", "completion"]),
        (["question", "Re\u0301ponse"], ["prompt", "completion"]),
        (["Domanda", "Risposta"], ["prompt", "completion"]),
        (["Pergunta", "Resposta"], ["prompt", "completion"]),
        (["Fråga", "Svar"], ["prompt", "completion"]),
        (["Spørgsmål", "Svar"], ["prompt", "completion"]),
        (["Вопрос", "Ответ"], ["prompt", "completion"]),
        (["问题", "答案"], ["prompt", "completion"]),
        (["質問", "回答"], ["prompt", "completion"]),
        (["질문", "답변"], ["prompt", "completion"]),
        (["Prompt", "Completion"], ["prompt", "completion"]),
        (["Prompt", "Response", "System Prompt"], ["prompt", "completion", "system"]),
        (["Instruction", "Input", "Output"], ["instruction", "input", "output"]),
        (["instruction", "context", "response", "category"], ["instruction", "input", "output"]),
        (["question", "context", "answer"], ["instruction", "input", "output"]),
        (["Anweisung", "Eingabe", "Ausgabe"], ["instruction", "input", "output"]),
        (["input", "output"], ["prompt", "completion"]),
        (["Prompt", "Chosen", "Rejected"], ["prompt", "chosen", "rejected"]),
        (["Messages"], ["messages"]),
        (["Text"], ["text"]),
        (["Texte", "titre"], ["text"]),
        (["question", "query", "answer"], None),
        (["foo", "bar"], None),
        (["answer"], None),
        ([], None),
    ],
)
def test_usual_names_are_known(columns: list[str], expected: list[str] | None) -> None:
    found = guess_columns(columns)
    assert (None if found is None else list(found)) == expected
    assert found is None or set(found.values()) <= set(columns)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("sep_line", [False, True])
def test_a_spreadsheet_is_read_whatever_saved_it(tmp_path: Path, delimiter: str, encoding: str, sep_line: bool) -> None:
    rows = [("Wie heißt; du, \t| „Ünal“?", 'Mehrere\nZeilen mit "Zitat" und 5 €'), ("zwei", "2")]
    path = tmp_path / "fragen.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        if sep_line:
            file.write(f"sep={delimiter}\r\n")
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("Frage", "Antwort", "", ""), *((*row, "", "") for row in rows), ("", "", "", "")])
    found, reader = read(path)
    assert found == [(question, answer.replace("\r\n", "\n")) for question, answer in rows]
    assert reader.guessed == {"prompt": "Frage", "completion": "Antwort"}
    assert reader.ignored_columns == []


def test_csv_agrees_with_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"Question": f"q, {i}\n", "Answer": f'"{i}"'} for i in range(5)]
    datasets.Dataset.from_list(rows).to_csv(tmp_path / "rows.csv")
    assert read(tmp_path / "rows.csv")[0] == [(row["Question"], row["Answer"]) for row in rows]


def test_a_mapping_that_is_given_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "a", "other": "o"}) + "\n")
    found, reader = read(path, columns={"prompt": "question", "completion": "other"})
    assert (found, reader.guessed) == ([("q", "o")], {})


def test_columns_that_a_format_reads_are_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "p", "completion": "c", "question": "q"}) + "\n")
    found, reader = read(path)
    assert (found, reader.guessed, reader.ignored_columns) == ([("p", "c")], {}, ["question"])


def test_a_column_that_only_some_rows_have_is_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"question": "q", "answer": "a", "context": "c"}, {"question": "r", "answer": "b"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, reader = read(path)
    assert (found, reader.ignored_columns) == ([("q", "a"), ("r", "b")], ["context"])


def test_two_columns_of_one_meaning_are_left_to_the_user(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,query,answer\na,b,c\n")
    with pytest.raises(DataError, match="unknown format"):
        read(path)
