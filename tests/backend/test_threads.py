"""Jittor from other threads, from several, in a forked process; copies of what holds an encoder."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PREPARE = """
import copy, os, pickle, subprocess, sys, threading
import numpy as np
from jclip_fewshot import FewShotClassifier
from jclip_fewshot.data import demo
root, model = demo.prepare("demo")
lines = [line.split() for line in open(root / "train.txt")]
chosen = [(str(root / path), int(label)) for path, label in lines if int(label) < 3]
paths, labels = [path for path, _ in chosen], [label for _, label in chosen]

def fitted():
    return FewShotClassifier(str(model), augment=2, methods=["tip_adapter", "gda"]).fit(paths, labels, ["a", "b", "c"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the demo contest drawn, once."""
    folder = tmp_path_factory.mktemp("threads")
    run(folder, "print('drawn')")
    return folder


def run(folder, code):
    done = subprocess.run([sys.executable, "-c", PREPARE + code], cwd=folder, timeout=300, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_another_thread_may_start_jittor_and_children_may_be_killed(folder):
    out = run(folder, """
made = []
thread = threading.Thread(target=lambda: made.append(fitted()))
thread.start(); thread.join()
child = subprocess.Popen(["sleep", "60"]); child.kill(); child.wait()
print(len(made[0].predict(paths)))""")
    assert int(out) > 10


def test_threads_share_a_classifier(folder):
    out = run(folder, """
clf, results = fitted(), [None] * 6
alone = [clf.predict_proba(paths), clf.predict_proba(paths[:3]), clf.refine(paths)]
def ask(n):
    calls = [lambda: clf.predict_proba(paths), lambda: clf.predict_proba(paths[:3]), lambda: clf.refine(paths)]
    results[n] = [calls[n % 3]() for _ in range(5)]
threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
print(all((result == alone[n % 3]).all() for n, answers in enumerate(results) for result in answers))""")
    assert out.split()[-1] == "True"


def test_a_forked_process_is_told_so(folder):
    out = run(folder, """
from jclip_fewshot.errors import UserError
clf = fitted()
for ask in (lambda: clf.predict(paths), fitted, lambda: __import__("jclip_fewshot.backend").backend.jt.array([1])):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            ask()
        except UserError as error:
            print(str(error)[:80], flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print(len(clf.predict(paths)))""")
    lines = out.splitlines()
    assert len(lines) == 4 and all("forked after Jittor had started" in line for line in lines[:3])


def test_a_process_forked_before_anything_was_computed_works(folder):
    out = run(folder, """
child = os.fork()
if child == 0:
    print(len(fitted().predict(paths)), flush=True)
    os._exit(0)
os.waitpid(child, 0)""")
    assert int(out) > 10


def test_copies_answer_alike_after_encoding_and_elsewhere(folder):
    out = run(folder, """
clf = fitted()
clf.predict(paths)
os.mkdir("elsewhere")
paths = [os.path.abspath(path) for path in paths]
clf.model = os.path.abspath(clf.model)
os.chdir("elsewhere")
same = [(copied.predict_proba(paths) == clf.predict_proba(paths)).all()
        for copied in (copy.deepcopy(clf), pickle.loads(pickle.dumps(clf)))]
print(same)""")
    assert out.split("\n")[-2] == "[True, True]"
