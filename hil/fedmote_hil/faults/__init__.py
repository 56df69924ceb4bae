# SPDX-License-Identifier: Apache-2.0
"""The fault matrix: each row pulls one plug out of a real fleet, and says whether what was promised held.

    matrix.py    a row, what it found, how rows are run
    model.py     the small model that all rows learn
    site.py      broker, packages, coordinator and devices of one row, in one directory
    serving.py   `fedmote serve` as a process that can be killed and measured
    fleet.py     the C device as hundreds of processes
    mqtt.py, member.py, crowd.py   participants in Python that speak the real protocol: one that lies, a thousand at once
    rows/        the rows

Nothing here is a model of a part: the coordinator is the command, the broker is Mosquitto, devices are the SDK's program.
"""
