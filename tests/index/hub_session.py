"""Run by test_hub.py in a process of its own: reads data sets from a local server that plays the Hugging Face hub.

The libraries read HF_ENDPOINT when they are imported, so the server is up before that. Prints one JSON object.
"""

import io
import json
import os
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq

from tests.local_hub import serve

TEXTS = ["supply and demand", None, "Mary gave John", "price"]


def parquet(texts: list[str | None]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "id": range(len(texts))}), file)
    return file.getvalue()


FILES = {
    "plain/texts": {
        "README.md": b"---\n---\n",
        "data/train-00000-of-00002.parquet": parquet(TEXTS[:2]),
        "data/train-00001-of-00002.parquet": parquet(TEXTS[2:]),
        "data/test-00000-of-00001.parquet": parquet(["Rome"]),
    },
    "two/configs": {
        "README.md": b"---\nconfigs:\n- config_name: one\n  data_files: one/*.jsonl\n"
        b"- config_name: two\n  data_files: two/*.jsonl\n---\n",
        "one/a.jsonl": b'{"text": "first"}\n',
        "two/a.jsonl": b'{"text": "second"}\n',
    },
}


def read(name: str, column: str = "text") -> object:
    from depass_sae.errors import UserError
    from depass_sae.index.corpus import corpus
    from depass_sae.index.items import Document, Reading

    try:
        items = corpus(f"hf:{name}", Reading(column=column))
        return [[i.where, i.content] if isinstance(i, Document) else [i.where, f"!{i.why}"] for i in items]
    except UserError as error:
        return str(error)


def main() -> None:
    with serve() as hub:
        os.environ["HF_ENDPOINT"] = hub.address
        time.sleep = lambda seconds: None  # type: ignore[assignment]
        for name, files in FILES.items():
            hub.add(f"datasets/{name}", files)
        hub.refused["datasets/closed/texts"] = (401, "GatedRepo")
        asked = ("plain/texts", "plain/texts:test", "two/configs/two", "two/configs", "no/texts", "closed/texts",
                 "plain/texts:none")  # fmt: skip
        found = {name: read(name) for name in asked}
        found["ids"] = read("plain/texts", "id")
    found["down"] = read("down/texts")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
