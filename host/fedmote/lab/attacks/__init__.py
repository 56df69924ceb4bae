# SPDX-License-Identifier: Apache-2.0
"""What hostile participants cost under each rule of aggregation (`fedmote bench attacks`)."""
