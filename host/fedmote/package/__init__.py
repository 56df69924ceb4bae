# SPDX-License-Identifier: Apache-2.0
"""The partition package: from a graph and its tensors to the bytes that a device runs, with NumPy alone.

    graph.py          the one type between all stages          specimen.py       random graphs, for proofs
    fold.py           template + tensors -> float graph        geometry.py       windows and shapes
    quantize.py       float graph + ranges -> int8 graph
    fixed_point.py    multipliers, shifts, clamps: their only home
    execute.py        float and integer executors, the second bit-exact with TensorFlow Lite Micro
    tflite_writer.py  int8 graph -> .tflite                    tflite_reader.py  .tflite, whoever made it -> int8 graph
    planner.py        arena offsets                            compile.py        int8 graph -> records and weights
    container.py      header, hash, sections                   plan_check.py     what a device checks, in its order
    file.py           Package                                  host_manifest.py  template, head, ranges as JSON
    partition.py      assemble, push, evaluate                 importer.py       .tflite -> package
    head.py           the float head between a checkpoint and a device
    boards.py         budgets of boards                        budget.py         what a package costs on them

Start with `partition.assemble`: it is the whole chain in four calls.
"""
