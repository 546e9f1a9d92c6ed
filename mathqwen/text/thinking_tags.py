"""The marks around the thinking of published models. Standard library only: grading imports it too."""

# As DeepSeek-R1, Qwen3 and QwQ mark it; others; Kimi; Magistral; Sky-T1.
PAIRS = {f'<{name}>': f'</{name}>' for name in ('think', 'thinking', 'thought', 'thoughts', 'reasoning', 'scratchpad')}
PAIRS |= {'◁think▷': '◁/think▷', '[THINK]': '[/THINK]', '<|begin_of_thought|>': '<|end_of_thought|>'}
