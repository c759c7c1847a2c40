from dfkt_jax.commands.show import show_evaluation


def shown(capsys, shares):
  show_evaluation(
    {
      **dict(network="n", arch="a", dataset="d", images=4, class_names=()),
      **dict(dataset_shape=[8, 8, 1], network_shape=[8, 8, 1]),
      **dict(accuracy=0.5, mean_class_accuracy=0.5, calibration_error=0.1),
      **dict(negative_log_likelihood=1.0, per_class_accuracy=shares),
    }
  )
  return [
    line for line in capsys.readouterr().out.splitlines() if line[0] == " "
  ]


def test_every_class_of_a_few(capsys):
  lines = shown(capsys, [0.5, None, 1.0])
  assert [line.split()[0] for line in lines] == ["0", "1", "2"]
  assert "no images" in lines[1]


def test_of_many_classes_the_worst_that_have_images(capsys):
  shares = [None if index % 2 else 1 - index / 1000 for index in range(1000)]
  lines = shown(capsys, shares)
  assert [int(line.split()[0]) for line in lines] == list(range(998, 978, -2))
