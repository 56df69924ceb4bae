# SPDX-License-Identifier: Apache-2.0
"""The partner: the phone or PC of a cell, with torch.

`agent.PartnerAgent` joins a transport, the session and the trainer; `session.Session` is the state machine without I/O;
`training` and `update` are torch and arithmetic; `state` is what survives a restart. Nothing is imported here, so that
reading a configuration or a state needs no torch.
"""
