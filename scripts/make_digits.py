#!/usr/bin/env python3
"""Makes examples/data/digits_images.npy and digits_labels.npy from the copy of the digits that scikit-learn bundles.

SOURCE is a scikit-learn wheel (.whl), a digits.csv.gz out of one, or left out: the scikit-learn installed here.
A wheel without installing it: python3 -m pip download --no-deps scikit-learn
"""

import argparse
import gzip
import hashlib
import importlib.util
import io
import pathlib
import sys
import zipfile

import numpy as np

MEMBER = "sklearn/datasets/data/digits.csv.gz"
COUNT, PIXELS, CLASSES, BRIGHTEST = 1797, 64, 10, 16


def compressed_csv(source: pathlib.Path | None) -> bytes:
    if source is None:
        # find_spec does not import scikit-learn, so that SciPy need not be there.
        spec = importlib.util.find_spec("sklearn")
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError("scikit-learn is not installed; name a wheel as SOURCE")
        source = pathlib.Path(spec.submodule_search_locations[0]).parent / MEMBER
    if source.suffix == ".whl":
        with zipfile.ZipFile(source) as wheel:
            return wheel.read(MEMBER)
    return source.read_bytes()


def digits(csv_gz: bytes) -> tuple[np.ndarray, np.ndarray]:
    table = np.loadtxt(io.BytesIO(gzip.decompress(csv_gz)), delimiter=",")
    if table.shape != (COUNT, PIXELS + 1):
        raise ValueError(f"the table is {table.shape}, expected {(COUNT, PIXELS + 1)}")
    images = table[:, :PIXELS].astype(np.uint8)
    labels = table[:, PIXELS].astype("<i8")
    if not (np.array_equal(images, table[:, :PIXELS]) and images.max() == BRIGHTEST):
        raise ValueError(f"a pixel is not an integer in 0..{BRIGHTEST}")
    if not (np.array_equal(labels, table[:, PIXELS]) and set(labels) == set(range(CLASSES))):
        raise ValueError(f"a label is not an integer in 0..{CLASSES - 1}")
    return np.ascontiguousarray(images), np.ascontiguousarray(labels)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", nargs="?", type=pathlib.Path)
    default = pathlib.Path(__file__).resolve().parent.parent / "examples" / "data"
    parser.add_argument("--output", metavar="DIR", type=pathlib.Path, default=default, help="default: examples/data")
    options = parser.parse_args()
    try:
        images, labels = digits(compressed_csv(options.source))
        for name, array in (("digits_images.npy", images), ("digits_labels.npy", labels)):
            path = options.output / name
            np.save(path, array)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            print(f"{path}: {array.dtype} {array.shape}, SHA-256 {digest}")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        print(f"make_digits.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
