# SPDX-License-Identifier: Apache-2.0
"""The partition package: from a graph and its tensors to the bytes that a device runs, with NumPy alone.

    graph.py          the one type between all stages          specimen.py       random graphs, for proofs
    fold.py           template + tensors -> float graph        geometry.py       windows and shapes
    quantize.py       float graph + ranges -> int8 graph       inputs.py         data files -> channels-last input
    fixed_point.py    multipliers, shifts, clamps: their only home
    tables.py         functions of one element, exponentials   arrangement.py    order of weights for each kind of kernels
    execute.py        float and integer executors, the second bit-exact with TensorFlow Lite Micro
    tflite_writer.py  int8 graph -> .tflite                    tflite_reader.py  .tflite, whoever made it -> int8 graph
    tflite_schema.py  field numbers and codes of both
    planner.py        arena offsets, outputs over inputs       packing.py        the search behind them
    compile.py        int8 graph -> records and weights        records.py        the words of each record, by name
    container.py      header, hash, sections                   plan_check.py     what a device checks, in its order
    file.py           Package                                  host_manifest.py  template, head, ranges as JSON
    partition.py      assemble, push, evaluate                 importer.py       .tflite -> package
    head.py           the float head between a checkpoint and a device
    boards.py         budgets of boards                        budget.py         what a package costs on them

Start with `partition.assemble`: it is the whole chain in four calls.
"""
