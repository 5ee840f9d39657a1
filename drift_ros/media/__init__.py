# SPDX-License-Identifier: Apache-2.0
"""Videos, pictures and label images as files, and drawing."""
