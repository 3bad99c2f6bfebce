"""Metrics: samples in, numbers out; a judge comes in as a callable."""

from selfspec.metrics.entropy import distinct_n as distinct_n
from selfspec.metrics.entropy import ngram_counts as ngram_counts
from selfspec.metrics.entropy import ngram_kl as ngram_kl
from selfspec.metrics.entropy import token_entropy as token_entropy
from selfspec.metrics.entropy import word_entropy as word_entropy
from selfspec.metrics.judge import HuggingFaceJudge as HuggingFaceJudge
from selfspec.metrics.judge import Judge as Judge
from selfspec.metrics.judge import JudgeScores as JudgeScores
from selfspec.metrics.judge import judge_nll as judge_nll
from selfspec.metrics.proteins import ESMFold as ESMFold
from selfspec.metrics.proteins import Folded as Folded
from selfspec.metrics.proteins import distinct_kmers as distinct_kmers
from selfspec.metrics.proteins import jensen_shannon as jensen_shannon
from selfspec.metrics.proteins import novelty as novelty
from selfspec.metrics.spelling import count_words as count_words
from selfspec.metrics.spelling import decoded as decoded
from selfspec.metrics.spelling import load_vocabulary as load_vocabulary
from selfspec.metrics.spelling import save_vocabulary as save_vocabulary
from selfspec.metrics.spelling import spelling_accuracy as spelling_accuracy
from selfspec.metrics.spelling import spelling_counts as spelling_counts
from selfspec.metrics.spelling import vocabulary as vocabulary
from selfspec.metrics.timing import Timing as Timing
from selfspec.metrics.timing import median_seconds as median_seconds
from selfspec.metrics.timing import synchronize as synchronize
