# SPDX-License-Identifier: Apache-2.0
"""`fedmote bench convert`: the converter beside others, and the fidelity of what it makes.

Every model of the zoo is trained on real data, converted by each stack in a process of that stack's own environment from the
same weights and calibration samples, and its int8 files are run by interpreters that are somebody else's code:

    subject.py        arguments of the command
    measurement.py    the order of work
    environments.py   virtual environments of others, below the cache, and what a stack adds to one that has torch and NumPy
    stacks.py         one conversion by one stack, timed in its own process
    interpreters.py   TensorFlow Lite Micro, LiteRT, tflite-runtime, the device's own C
    files.py          what a `.tflite` file holds, read with LiteRT's schema
    measures.py       int8 files against float modules, on held-out data
    subjects.py       a model with all that was made of it
    rows.py           a row for each model and stack, and its verdicts
    fidelity.py       F1 to F14: limits, measured values, whether they hold
    same_numbers.py   our form from the very float32 numbers of a peer's
    onnx_exports.py   the same model through torch's ONNX exporters
    recipes.py        recipes of the quantization, compared on samples that are kept for choosing
    report.py         tables
"""
