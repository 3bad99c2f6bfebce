"""Train the models of `proteins` one after another, as books27.py does those of `books27`.

    selfspec prepare proteins --source uniprot.fasta.gz --out DATA
    python benchmarks/proteins.py --data DATA --runs RUNS trunk=8000 head=2000 windows=2000@head
    python benchmarks/proteins.py --data DATA --runs RUNS judge=3000

The trunk stays frozen in `head`; `joint` and `windows` train both. The quality curve of a model:

    python benchmarks/quality.py --model RUNS/windows/model --judge RUNS/judge/model --data DATA \\
        --out benchmarks/results/proteins-quality.json
"""

from books27 import main

from selfspec.recipes import proteins

if __name__ == "__main__":
    main(proteins, __doc__)
