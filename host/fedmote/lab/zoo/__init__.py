# SPDX-License-Identifier: Apache-2.0
"""The model zoo: networks that microcontrollers run, each trained on real data, for benchmarks of what is done to them."""
