# The grid of experiments behind `make paper`: each job is one run of nbs/run_experiment.ipynb by papermill.
#
# What is to be run is data (nbs/papers). A run is finished when its folder says so; the files under
# outputs/studies only tell Snakemake which notebooks ended. Executed notebooks are logs and survive a failure.
import os
import shlex
import sys

from mixsupcon.report.studies import jobs

SCALE = config.get("scale", "small")
RUN = shlex.quote(sys.executable)
JOBS = jobs(SCALE)
LEFT = [name for name, job in JOBS.items() if not job.done]
ENDED = "outputs/studies/" + SCALE + "/{}.done"

for name in LEFT if workflow.is_main_process else []:
    if os.path.exists(ENDED.format(name)):
        os.remove(ENDED.format(name))   # its runs were deleted since


rule all:
    input: [ENDED.format(name) for name in LEFT],


for name, job in JOBS.items():
    rule:
        name: name
        output: touch(ENDED.format(name)),
        log: notebook=f"outputs/notebooks/{SCALE}/{name}.ipynb", text=f"outputs/notebooks/{SCALE}/{name}.txt",
        params: words=" ".join(f"-p {key} {shlex.quote(str(value))}" for key, value in job.parameters.items()),
        threads: 4 if job.parameters["device"] == "cuda" else 1
        resources: **(dict(mem_mb=16000, gpu=1) if job.parameters["device"] == "cuda" else dict(mem_mb=1500)),
        shell:
            RUN + " -m papermill --no-progress-bar nbs/run_experiment.ipynb {log.notebook} -p wait 86400 {params.words} 2>&1"
            " | tee {log.text} | {{ grep --line-buffered -o 'done .*' || true; }}"
