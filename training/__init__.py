# SPDX-License-Identifier: Apache-2.0
"""Training of the embedded image diffusion model: `python -m training --help`."""
