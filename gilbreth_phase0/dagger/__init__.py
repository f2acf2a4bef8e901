"""DAgger: correct a policy where it fails.

machine.py        who acts: policy, takeover, handed back; and the budget of takeovers
gates.py          when the expert is asked: mixing, an oracle, an ensemble, chance; human.py: a person
rollout.py        one roll-out with interventions, and its file
collection.py     the roll-outs of a round, over processes and ranks
aggregate.py      roll-outs as a LeRobotDataset
rounds.py         what a run has done so far; curve.py: what that cost, and what it brought
beginning.py      what a run begins from, found and checked
asking.py         from arguments to gates and experts
run.py            the rounds, on all ranks
"""
