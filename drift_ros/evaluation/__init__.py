# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the DAVIS metric, baselines, dataset runner, bag replay and reports."""
