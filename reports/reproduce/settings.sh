# Every number of the reproduction, with its source at the end of its line:
#   paper        SelecTKD (arXiv 2510.24021)
#   DistiLLM-2   arXiv 2503.07067 (section, appendix or table), to which the paper defers for its training
#   released     the configuration released with DistiLLM-2 (github.com/jongwooko/distillm-2 at fe4cf9b)
#   ours         our choice, because neither says it
# Any of them can be set from outside: `SEEDS=0 PAIRS=qwen2 METHODS=kd bash reports/reproduce/table1.sh`.

# Machine
: "${GPUS:=8}"                         # paper 5.1: 8 A100 80GB; processes of one training
: "${MICRO:=4}"                        # ours: sequences per forward pass; any value gives the same gradient
: "${RUNS:=runs/reproduce}"            # ours: text, students and records
: "${DATA:=$RUNS/data}"                # ours: prepared prompts
: "${TABLES:=reports/tables/reproduce}" # ours: where the tables go
: "${TEACHER_URL:=}"                   # ours: an OpenAI-compatible server (vLLM) that writes the teacher's text; empty: here
: "${TEACHER_CACHE:=}"                 # ours: directory for the teacher's hidden states; empty: none is kept
: "${CLIENTS:=64}"                     # ours: prompts decoded together, or requests in flight

# The gate ("+Ours")
: "${K:=5}"                            # paper 5.1
: "${BETA:=0.01}"                      # paper 5.1
: "${GATE:=spec-k}"                    # paper Table 4: its Spec-k row is Table 1's KD + Ours

# Distillation
: "${SEEDS:=0 1 2}"                    # paper 5.1: averaged over 3 seeds
: "${LORA_RANK:=16}"                   # DistiLLM-2 Table 11
: "${LORA_ALPHA:=128}"                 # released
: "${LORA_DROPOUT:=0.05}"              # released
: "${LR:=5e-5}"                        # DistiLLM-2 Table 11
: "${SCHEDULE:=cosine}"                # released
: "${WARMUP:=0.1}"                     # released
: "${WEIGHT_DECAY:=0}"                 # released: the trainer's default
: "${CLIP:=1.0}"                       # released: the trainer's default
: "${BATCH:=128}"                      # DistiLLM-2 Table 11: prompts per update over all processes; a pair is one
: "${MAX_LENGTH:=1024}"                # released: prompt and answer, in tokens
: "${EVAL_EVERY:=100}"                 # ours: updates between two validations
: "${PATIENCE:=3}"                     # ours: the paper stops early and does not say when
: "${EPOCHS_CHAT:=2}"                  # paper 5.1 (DistiLLM-2 trained 3)
: "${EPOCHS_CODE:=2}"                  # paper 5.1
: "${EPOCHS_MATH:=1}"                  # paper 5.1 (DistiLLM-2 trained 2)

# Text
: "${PROMPTS:=50000}"                  # paper 5.1: random prompts of UltraChat200k; samples of MetaMathQA
: "${HELD_OUT:=1000}"                  # paper 5.1: of them, for validation
: "${PROMPT_CHARACTERS:=2000}"         # ours: longer prompts are not drawn (released: cut at 512 tokens)
: "${DRAW_SEED:=0}"                    # ours: which prompts are drawn
: "${TEXT_TEMPERATURE:=0.8}"           # released: teacher's and student's training text
: "${TEXT_TOP_P:=0.95}"                # released
: "${TEXT_TOKENS:=1024}"               # released
: "${BASELINES:=released}"               # released: KD, GKD and DistiLLM as DistiLLM-2 ran them; `own`: by their own papers
: "${STUDENT_TEXT:=trainer}"           # DistiLLM-2 Algorithm 1: anew each epoch; `start`: once, by the starting student

# Supervised fine-tuning that comes first
: "${START:=sft}"                      # DistiLLM-2 C.2: base model, then SFT; `instruct`: the paper's section 5.1 names
: "${SFT_LR:=5e-5}"                    # released (Qwen)
: "${SFT_EPOCHS:=1}"                   # released; paper 5.1 for mathematics
: "${SFT_BATCH:=512}"                  # released: 2 x 64 on 4 GPUs
: "${SFT_MAX_LENGTH:=2048}"            # released
: "${SFT_SCHEDULE:=cosine}"            # released (Qwen)
: "${SFT_CODE_LR:=5e-6}"               # released (DeepSeek-Coder)
: "${SFT_CODE_EPOCHS:=5}"              # released (DeepSeek-Coder)
: "${SFT_CODE_BATCH:=128}"             # released (DeepSeek-Coder): 8 x 4 on 4 GPUs
: "${SFT_CODE_SCHEDULE:=linear}"       # released (DeepSeek-Coder)

# Measuring
: "${ANSWER_TEMPERATURE:=0.8}"         # DistiLLM-2 C.3
: "${ANSWER_TOP_P:=0.95}"              # DistiLLM-2 C.3
: "${ANSWER_TOKENS:=512}"              # DistiLLM-2 C.3
: "${JUDGE:=gpt-4o}"                   # paper Table 1: AlpacaEval and Evol-Instruct
: "${JUDGE_ULTRAFEEDBACK:=gpt-4o-mini}" # paper Table 1
: "${PROTOCOL:=selectkd}"              # paper 5.1: random order, ties left out
: "${MATH_TOKENS:=1024}"               # DistiLLM-2 C.3: greedy
: "${MATH_TASKS:=gsm8k math}"           # paper 5.1; zero-shot through the chat template, as the students learnt it
: "${CODE_TASKS:=humaneval mbpp-base}" # DistiLLM-2 C.3: EvalPlus, whose MBPP has 378 problems; its prompts for chat models
: "${CODE_TOKENS:=1024}"               # DistiLLM-2 C.3: greedy
: "${RESAMPLES:=10000}"                # paper 5.1
: "${GAMMAS:=3 5}"                     # ours: draft lengths of Table 5
: "${SPEED_PROMPTS:=80}"               # ours: how many Evol-Instruct prompts are timed
: "${SPEED_TOKENS:=128}"               # ours: longest timed answer
: "${SPEED_DTYPE:=bfloat16}"           # ours

# pair NAME: the two models and what is special about them.
#   BASE      the student before any fine-tuning; INSTRUCT: the student that section 5.1 names, where it names one
#   END       the token with which the teacher's chat template ends a turn, where the tokenizer has another end token
#   ATTENTION Gemma-2 caps its attention logits, which only eager attention does
pair() {
  END='' ATTENTION=sdpa INSTRUCT=''
  case $1 in
  qwen2) # paper 5.1 and Table 1
    KIND=chat TEACHER=Qwen/Qwen2-7B-Instruct BASE=Qwen/Qwen2-1.5B INSTRUCT=Qwen/Qwen2-1.5B-Instruct ;;
  danube2) # paper 5.1 and Table 1; the version of Mistral is the one in the released scripts
    KIND=chat TEACHER=mistralai/Mistral-7B-Instruct-v0.2 BASE=h2oai/h2o-danube2-1.8b-base ;;
  gemma2) # paper 5.1 and Table 1
    KIND=chat TEACHER=google/gemma-2-9b-it BASE=google/gemma-2-2b INSTRUCT=google/gemma-2-2b-it
    END='<end_of_turn>' ATTENTION=eager ;;
  qwen2-math) # paper 5.1 and Table 2
    KIND=math TEACHER=Qwen/Qwen2-Math-7B-Instruct BASE=Qwen/Qwen2-Math-1.5B ;;
  qwen2.5-math) # paper 5.1 and Table 2
    KIND=math TEACHER=Qwen/Qwen2.5-Math-7B-Instruct BASE=Qwen/Qwen2.5-Math-1.5B ;;
  deepseek-coder) # paper 5.1 and Table 2 (which prints 6.9B)
    KIND=code TEACHER=deepseek-ai/deepseek-coder-6.7b-instruct BASE=deepseek-ai/deepseek-coder-1.3b-base ;;
  qwen2.5-coder) # paper 5.1 and Table 2
    KIND=code TEACHER=Qwen/Qwen2.5-Coder-7B-Instruct BASE=Qwen/Qwen2.5-Coder-1.5B ;;
  phi-3-medium) # paper Table 5
    KIND=draft TEACHER=microsoft/Phi-3-medium-4k-instruct BASE=JackFram/llama-68m END='<|end|>' ;;
  phi-3.5-mini) # paper Table 5
    KIND=draft TEACHER=microsoft/Phi-3.5-mini-instruct BASE=JackFram/llama-68m END='<|end|>' ;;
  *) note "there is no pair $1"; return 2 ;;
  esac
  PLACE=$RUNS/$1
}

# method NAME: recipe, variant, label in tables, and the text it starts from.
#   TEXT     teacher: the teacher's answers; truth: the data set's own
#   PAIRS_OF 1 where each prompt is trained with a teacher's and a student's answer
# The paper's baseline rows are DistiLLM-2's numbers, so BASELINES=released is the default: its KD learns from the
# teacher's answers, its GKD and DistiLLM from pairs. ImitKD and SKD are not in its code and follow their own papers;
# what GKD and DistiLLM mix the student's text with under BASELINES=own is ours, the teacher's answers.
method() {
  RECIPE=$1 VARIANT='' TEXT=teacher PAIRS_OF=0
  case $1 in
  sft) LABEL=SFT TEXT=truth ;;
  kd) LABEL=KD ;;
  seqkd) LABEL=SeqKD ;;
  imitkd) LABEL=ImitKD TEXT=truth ;;
  gkd) LABEL=GKD ;;
  distillm) LABEL=DistiLLM ;;
  skd) LABEL=SKD ;;
  distillm2) LABEL=DistiLLM-2 PAIRS_OF=1 ;;
  *) note "there is no method $1"; return 2 ;;
  esac
  case $BASELINES-$1 in released-gkd | released-distillm) VARIANT=distillm2 PAIRS_OF=1 ;; esac
}
