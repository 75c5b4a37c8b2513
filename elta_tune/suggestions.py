"""Suggestions for a name that is unknown: what it is called here, or the known name that is spelled like it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SYNONYMS = {
    # fields of a recipe, as other tools and the released code name them
    "optim.lr": "learningrate initlr baselr headlr eta",
    "optim.weight_decay": "wd l2 decay",
    "optim.name": "optimizer optim opt",
    "optim.schedule": "scheduler lrscheduler lrschedule",
    "optim.warmup_epochs": "warmup warmupsteps",
    "optim.backbone_lr_factor": "backbonelr lrbackbone lrmult",
    "training.epochs": "epoch numepochs nepochs maxepochs epochnum",
    "training.batch_size": "batchsize bs trainbatchsize batch",
    "training.precision": "amp fp16 bf16 dtype mixedprecision",
    "training.emd_reduction": "reduction",
    "training.retrain_head_epochs": "rrt retrain retrainepochs",
    "evaluation.batch_size": "evalbatchsize valbatchsize testbatchsize",
    "evaluation.metric": "evalmetric monitor",
    "model.backbone": "arch architecture encoder network net modelname timmmodel basemodel",
    "model.weights": "checkpoint ckpt pretrainedpath weightspath initcheckpoint",
    "model.pretrained": "imagenet usepretrained",
    "model.freeze": "frozen freezebackbone linearprobe",
    "model.head": "loss losstype task criterion",
    "model.hidden_size": "hidden hiddendim headdim",
    "model.dropout": "drop droprate dropoutrate",
    "mixup.pairs": "mixup nummix mixnum nmix usemixup",
    "mixup.alpha": "mixupalpha beta_alpha",
    "mixup.tau_1": "tau1 t1",
    "mixup.tau_2": "tau2 t2",
    "simloss.weight": "simloss similarityweight simweight lambdasim wsim",
    "sharpening.temperature": "beta temp",
    "sharpening.threshold": "theta confidence confthreshold",
    "self_training.rounds": "iterations numrounds nrounds",
    "data.root": "dataroot datadir dataset datasetpath path folder dir",
    "data.images": "imagedir imgdir imageroot imgpath imagepath imagefolder",
    "data.ratings": "csv labels annotations labelfile annfile",
    "data.train": "traincsv trainfile trainset",
    "data.val": "valid validation valcsv valfile dev",
    "data.test": "testcsv testfile testset",
    "data.pool": "unlabeled unlabelled unlabeledpool",
    "data.columns.id": "imagecolumn imagecol idcolumn filename",
    "data.columns.score": "scorecolumn moscolumn target label",
    "data.crop": "imagesize imgsize inputsize cropsize size",
    "data.resize": "resizesize",
    "data.max_missing": "allowmissing missing",
    "seed": "randomseed randomstate manualseed rng",
    # keys of a space: Optuna, NNI, Ray Tune
    "low": "min lower lowerbound minimum start",
    "high": "max upper upperbound maximum end stop",
    "choices": "values options categories value",
    "step": "q stepsize",
    "log": "logscale logarithmic",
    "when": "condition conditions if",
    "type": "kind distribution dist",
    "budget.trials": "ntrials maxtrials maxtrialnumber numtrials numsamples trials",
    "budget.timeout": "maxexecduration maxexperimentduration maxduration timebudget",
    "sampler.name": "tuner tunername algorithm searchalg",
    "sampler.startup_trials": "nstartuptrials nstartupjobs",
    "pruner.name": "assessor assessorname",
    "pruner.warmup": "nwarmupsteps warmupsteps startstep",
    "objective.metric": "metric monitor",
    "objective.direction": "optimizemode mode direction",
    "parameters": "space searchspace params hyperparameters",
    "enqueue": "enqueuetrial initialpoints pointstoevaluate guesses",
    # values
    "float": "uniform real double suggestfloat floatdistribution continuous",
    "float with log: true": "loguniform suggestloguniform reciprocal qloguniform loguniformdistribution",
    "float with a step": "quniform discreteuniform suggestdiscreteuniform",
    "int": "integer randint suggestint intdistribution intuniform",
    "int with log: true": "lograndint intloguniform",
    "categorical": "choice choice_ suggestcategorical categoricaldistribution enum",
    "maximize": "max maximise up higher",
    "minimize": "min minimise down lower",
    "tpe": "tpesampler tpetuner bayesian bayes bayesopt hyperopt",
    "random": "randomsampler randomtuner randomsearch",
    "grid": "gridsampler gridsearch gridsearchtuner bruteforce",
    "gp": "gpsampler gaussianprocess gptuner",
    "qmc": "qmcsampler sobol halton",
    "evolution": "evolutiontuner naiveevolution genetic nsgaii",
    "median": "medianpruner medianstop medianstopassessor medianstopping",
    "successive_halving": "sha asha successivehalvingpruner",
    "hyperband": "hyperbandpruner bohb",
    "none": "nop noppruner off no false null",
    "srcc": "spearman spearmanr srocc rho",
    "plcc": "pearson pearsonr lcc",
    "accuracy": "acc",
    "rmse": "mse",
    "mae": "l1",
    "emd_r1": "emd emdr1",
    "emd_r2": "emdr2",
    "emd": "distribution classification",
    "mse": "regression score",
    "adam": "adamoptimizer",
    "sgd": "momentum nesterov",
    "cosine": "cosineannealing cosineannealinglr",
    "constant": "fixed",
    "float32": "fp32 full single",
    "bfloat16": "bf16",
    "float16": "fp16 half",
    "cuda:0": "gpu cuda gpu0 nvidia",
    "hf": "huggingface transformers",
    "ckpt": "pt pth pytorch checkpoint",
}
"""What a thing is called here, and what else people call it (`_key` of that), in Optuna, NNI, Ray Tune, timm and the
released code."""


def _key(name: str) -> str:
    """A name without case, blanks, `_`, `-` and dots."""
    return re.sub(r"[\s_.-]", "", name).lower()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" — did you mean 'x'?"``, to end a message with, or nothing where no known name is near.

    A synonym comes before a similar spelling.
    """
    candidates = list(known)
    lower = {candidate.lower(): candidate for candidate in candidates}
    spelled = [lower[key] for key in difflib.get_close_matches(name.lower(), lower, n=1)]
    return _question(_synonyms(name, candidates) or spelled)


def suggest_field(name: str, known: Iterable[str]) -> str:
    """`did_you_mean` for dotted names: their last parts are compared, then the sections that they stand in."""
    candidates = list(known)
    section, _, leaf = name.rpartition(".")
    places: dict[str, list[str]] = {}
    for candidate in candidates:
        places.setdefault(candidate.rpartition(".")[2], []).append(candidate)
    spelled = difflib.get_close_matches(leaf, places, n=1)
    near = spelled and difflib.get_close_matches(name, places[spelled[0]], n=1, cutoff=0)
    same_leaf = spelled and _key(spelled[0]) == _key(leaf)
    return _question(near if same_leaf else _synonyms(name, candidates) or _synonyms(leaf, candidates, section) or near)


def _synonyms(name: str, known: list[str], section: str = "") -> list[str]:
    """Known names for a synonym, those of the same section first; `float with log: true` counts as `float`."""
    key = _key(name)
    same = [candidate for candidate in known if _key(candidate) == key]
    meant = [own for own, others in SYNONYMS.items() if key in others.split()]
    near = [
        own if " " in own else candidate
        for own in meant
        for candidate in known
        if own.partition(" ")[0] in (candidate, candidate.rpartition(".")[2])
    ]
    return same or sorted(near, key=lambda candidate: not candidate.startswith(section))


def _question(near: list[str]) -> str:
    return f" — did you mean {near[0]!r}?" if near else ""
