# SPDX-License-Identifier: Apache-2.0
"""The demonstration: real data, three cells, one merge, and the baselines on the same data and seeds.

`settings` and `data` say what is learned from what, `training` makes the first checkpoint, `fleet` runs the real commands as
processes, `experiment` plays one run and reads its ledger, `report` and `plot` show it.
"""
