"""Every rule of preflight, by subject. docs/preflight.md lists them with the test that shows each."""

from __future__ import annotations

from launch.preflight.finding import ERROR, WARNING, Rule

# Resources and limits: a stage and anybody's script.
GPUS_NODE = Rule("gpus-node", ERROR, "no node has so many, so the job is refused or waits for ever")
CPUS_NODE = Rule("cpus-node", ERROR, "no node has so many, so the job is refused or waits for ever")
MEMORY_NODE = Rule("memory-node", ERROR, "no node has so much, so the job is refused or waits for ever")
NODES_PARTITION = Rule("nodes-partition", ERROR, "the partition has fewer nodes, so the job is refused or never starts")
GPUS_QOS = Rule("gpus-qos", ERROR, "the job is refused, or waits for ever with QOSMaxGRESPerUser or the like")
TIME_QOS = Rule("time-qos", ERROR, "the job is refused, or waits for ever with QOSMaxWallDurationPerJobLimit")
TIME_PARTITION = Rule("time-partition", ERROR, "the job is refused, or waits for ever with PartitionTimeLimit")
TIME_MISSING = Rule("time-missing", WARNING, "the partition's default ends the job, which may be minutes")
SIGNAL_TIME = Rule("signal-time", ERROR, "the job would be told to stop as it starts")
LOCAL_NODES = Rule("local-nodes", ERROR, "without Slurm there is one node")

# The live cluster.
PARTITION_UNKNOWN = Rule("partition-unknown", ERROR, "sbatch refuses the job")
PARTITION_DOWN = Rule("partition-down", ERROR, "the partition takes or starts no jobs now")
ACCOUNT_UNKNOWN = Rule("account-unknown", ERROR, "sbatch refuses the job: Invalid account")
ACCOUNT_PARTITION = Rule("account-partition", ERROR, "the partition is not for this account, so the job never starts")
QOS_UNKNOWN = Rule("qos-unknown", ERROR, "sbatch refuses the job: Invalid qos specification")
QOS_PARTITION = Rule("qos-partition", ERROR, "the partition does not take this QOS, so the job never starts")
QOS_ACCOUNT = Rule("qos-account", ERROR, "the account may not use this QOS: Invalid qos specification")
SLURM_SILENT = Rule("slurm-silent", WARNING, "only the profile was checked, which may be older than the cluster")
DEPENDENCY = Rule("dependency", ERROR, "it can never hold, so the job waits for ever with DependencyNeverSatisfied")
DEPENDENCY_UNKNOWN = Rule(
    "dependency-unknown",
    WARNING,
    "Slurm forgets it and starts the job at once, or refuses the job, as its version goes",
)

# Folders and disk.
NODE_LOCAL = Rule("node-local", ERROR, "other nodes do not see it, nor does the login node: files are missing or lost")
NOT_WRITABLE = Rule("not-writable", ERROR, "the job ends in its first second")
FOLDER_TAKEN = Rule("folder-taken", ERROR, "two runs would write over each other")
LOG_FOLDER = Rule("log-folder", ERROR, "the log would not be where it is looked for")
DISK_SPACE = Rule("disk-space", ERROR, "a save fails when the disk is full, hours into the run")
STORE_STRANGERS = Rule("store-strangers", ERROR, "models would be mixed with files of something else")

# Inputs and arguments.
DATASET_MISSING = Rule("dataset-missing", ERROR, "the job ends in its first second")
POLICY_MISSING = Rule("policy-missing", ERROR, "the job ends in its first second")
FEATURES = Rule("features", ERROR, "the policy was trained with other inputs or outputs, so the first batch fails")
ARGUMENTS = Rule("arguments", ERROR, "the stage's own parser refuses it in the job's first second")
BATCH = Rule("batch", ERROR, "batch = micro-batch x ranks x accumulation must come out even, or the stage refuses it")

# Tracking.
WANDB_KEY = Rule("wandb-key", WARNING, "the run is written offline, and W&B shows it only after a push by hand")
SECRET = Rule("secret", ERROR, "whoever can read the script has it, and Slurm keeps the script in its database")

# Scripts: what Slurm reads.
NOT_A_SCRIPT = Rule("not-a-script", ERROR, "sbatch refuses it")
DIRECTIVE_LATE = Rule("directive-late", ERROR, "Slurm stops reading at the first command, so the option is ignored")
DIRECTIVE_VARIABLE = Rule("directive-variable", ERROR, "Slurm does not expand it: the text is taken as it stands")
OUTPUT_FOLDER = Rule("output-folder", ERROR, "the job is FAILED with 0:53 at its start, without a line of log")
REQUEUE_TRUNCATES = Rule("requeue-truncates", WARNING, "a requeued job begins its log anew: what came before is lost")
EXPORT_NONE = Rule("export-none", ERROR, "srun inside the job inherits it, and its tasks start without a PATH")

# Scripts: processes and nodes.
MISSING_SRUN = Rule("missing-srun", ERROR, "a batch script runs on the first node alone: the others idle, ranks wait")
SSH_LAUNCHER = Rule("ssh-launcher", ERROR, "it goes to other nodes by ssh, which clusters do not allow between nodes")
SOCKET_IFNAME = Rule("socket-ifname", ERROR, "interfaces have other names on other nodes: NCCL or gloo finds none")
FIXED_PORT = Rule("fixed-port", WARNING, "another job on the node may have it: Address already in use")
TORCHRUN_TASKS = Rule("torchrun-tasks", ERROR, "every task starts torchrun, and each of those all processes again")
TORCHRUN_GPUS = Rule("torchrun-gpus", ERROR, "processes without a GPU of their own fail with invalid device ordinal")
IDLE_GPUS = Rule("idle-gpus", WARNING, "GPUs are asked for, and paid for, that no process uses")
HANGING_RANKS = Rule("hanging-ranks", WARNING, "when one task dies, the others wait for it until the time limit")
VISIBLE_DEVICES = Rule("visible-devices", WARNING, "it overrides what Slurm gave the job: another job's GPU, or none")

# Scripts: signals and shell.
SIGNAL_UNTRAPPED = Rule("signal-untrapped", ERROR, "B: signals the batch shell alone, which dies of it, saving nothing")
SIGNAL_WAITS = Rule("signal-waits", ERROR, "bash runs a trap only when the command in the foreground has ended")
SIGNAL_NO_STEP = Rule("signal-no-step", ERROR, "without B: only srun's tasks get the signal, and there are none")
SIGNAL_TORCHRUN = Rule("signal-torchrun", WARNING, "torchrun gets the signal and its workers do not (pytorch#154849)")
CONDA_INIT = Rule("conda-init", ERROR, "a batch shell has not run conda's hook: activate fails, another Python runs")
CONDA_NOUNSET = Rule(
    "conda-nounset", ERROR, "conda's and modules' scripts use unset variables, and set -u ends the job"
)


def all_rules() -> dict[str, Rule]:
    """The rules by name, in the order of this file."""
    return {value.name: value for value in globals().values() if isinstance(value, Rule)}
