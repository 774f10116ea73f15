"""Deep Q-learning with a replay buffer in half precision storage, a target network and a Huber loss."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Replay:
    def __init__(self, room=128, observed=4):
        self.states = torch.zeros(room, observed, dtype=torch.float16)
        self.after = torch.zeros(room, observed, dtype=torch.float16)
        self.actions = torch.zeros(room, dtype=torch.long)
        self.rewards = torch.zeros(room, dtype=torch.float32)
        self.room, self.size = room, 0

    def add(self, state, action, reward, after):
        at = self.size % self.room
        self.states[at], self.after[at] = state, after
        self.actions[at], self.rewards[at] = action, reward
        self.size += 1

    def sample(self, count):
        rows = torch.randint(0, min(self.size, self.room), (count,))
        return self.states[rows].float(), self.actions[rows], self.rewards[rows], self.after[rows].float()


def q_network():
    return nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 3))


class Agent:
    def __init__(self, gamma=0.5, tau=0.05):
        self.q = q_network()
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.q.parameters(), lr=5e-3)
        self.gamma, self.tau = gamma, tau

    def learn(self, batch):
        states, actions, rewards, after = batch
        with torch.no_grad():
            wanted = rewards + self.gamma * self.target(after).max(dim=1).values
        chosen = self.q(states).gather(1, actions[:, None]).squeeze(1)
        loss = F.huber_loss(chosen, wanted)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.q.parameters(), 10.0)
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.q.parameters()):
                slow.lerp_(fast, self.tau)
        return loss.item()


def main():
    torch.manual_seed(0)
    agent, replay = Agent(), Replay()
    state = torch.randn(4)
    for _ in range(128):
        action = int(torch.randint(0, 3, ()))
        after = (0.5 * state + torch.randn(4)).clamp(-3, 3)
        replay.add(state, action, float(after[action] > 0) * 2 - 1 + state[action], after)
        state = after
    for round_ in range(14):
        loss = agent.learn(replay.sample(64))
        print(f"round {round_} loss {loss:.4f}")


if __name__ == "__main__":
    main()
