#!/usr/bin/env bash
# What `make demo` shows: the commands that a user types, on the embedded sample folder.
set -euo pipefail
sample=${1:-sample}

run() {
  printf '\n$ finetune %s\n' "$*"
  finetune "$@"
}
newest() { (cd runs && readlink latest); }

run sample "$sample"

run fit --config configs/quickstart.yaml --data.root "$sample" --name demo
tuned=runs/$(newest)
run test --ckpt_path "$tuned/checkpoints/best.ckpt" --data.root "$sample"
run predict "$tuned/checkpoints/best.ckpt" "$sample/test/fur" --topk 2

printf '\nThe same images, and a small network that starts from nothing:\n'
run fit --config configs/baseline.yaml --data.root "$sample" --name demo-from-scratch --trainer.max_epochs 18
scratch=runs/$(newest)
run test --ckpt_path "$scratch/checkpoints/best.ckpt" --data.root "$sample"

printf '\nSide by side:\n'
run compare "$tuned" "$scratch"
printf '\nAll of it lies in %s and %s; the report is %s/report/index.html\n' "$tuned" "$scratch" "$tuned"
