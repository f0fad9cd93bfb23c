"""Calibrates on arrays split over a mesh; started as a process of its own by test_meshes.

Arguments: devices of this process, number of processes, this process's number, port. Prints one
JSON object: for each case the bits of the thresholds, the risks, and the first error's text.
"""

from __future__ import annotations

import json
import sys
import warnings

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from problems import mesh_cases

from arbitrage import DataError, calibrate


def main(devices: int, processes: int, number: int, port: int) -> None:
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, number)
    mesh = jax.make_mesh((len(jax.devices()) // 2, 2), ("rows", "more"))
    by_row = NamedSharding(mesh, PartitionSpec(("rows", "more")))

    def split(array):
        if array is None:
            return None
        return jax.make_array_from_callback(array.shape, by_row, lambda index: array[index])

    answers = {}
    for name, (arrays, options) in mesh_cases().items():
        given = {key: split(array) for key, array in arrays.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = calibrate(given.pop("primary"), given.pop("guardian"), **given, **options)
            except DataError as error:
                answers[name] = {"error": str(error), "row": error.row}
                continue
        answers[name] = {
            "bits": np.asarray(found.threshold).view(np.uint32).tolist(),
            "risk": np.asarray(found.empirical_risk).tolist(),
        }
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
