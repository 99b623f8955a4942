#!/usr/bin/env bash
# A model for devices: export it, look at how near it is to PyTorch, measure it here.
#   examples/export_and_bench.sh path/to/diffusers-folder-or-hub-id my-bundle
set -euo pipefail
source=$1 bundle=$2
obclip export "$source" "$bundle" --weights fp16
obclip inspect "$bundle"
obclip bench "$bundle" --pair "${3:-sd14}" --runs 5 --plot "$bundle-bench.svg"
