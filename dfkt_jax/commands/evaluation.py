"""Student and teacher on the evaluation set."""

from dfkt_jax import data, evaluate
from dfkt_jax.network import InputSpec, Network


class Evaluation:
  """The only reader of real images of the task."""

  def __init__(self, teacher: Network, dataset: data.Dataset):
    self._dataset = dataset
    self._predict = evaluate.make_predict()
    self._decisions = self._predict(teacher, dataset.images).argmax(1)
    self.teacher_accuracy = evaluate.share(self._decisions == dataset.labels)

  def __call__(self, student: Network) -> dict[str, float]:
    """Metrics of the log: "eval/accuracy" and "eval/agreement"."""
    logits = self._predict(student, self._dataset.images)
    result = evaluate.score(logits, self._dataset.labels, student.spec.classes)
    agreement = evaluate.share(logits.argmax(1) == self._decisions)
    return {"eval/accuracy": result["accuracy"], "eval/agreement": agreement}


def load(text: str | None, teacher: Network) -> data.Dataset | None:
  """The evaluation set at the teacher's input, if there is one."""
  if text is None:
    return None
  spec: InputSpec = teacher.spec
  dataset = data.load(text, (spec.height, spec.width))
  return evaluate.fit_to(teacher, dataset)
