// Fine-tuning of ptb_awd.jsonnet's result: the same, averaged from the first step on, until
// validation has not become better for 5 epochs (Merity et al. 2017, section 5).
//
//   allennlp train configs/ptb_awd_finetune.jsonnet     # from runs/ptb_awd
//
// Expect: 59.1 on validation and 56.7 on test, from 60.6 and 58.3.
local awd = import "ptb_awd.jsonnet";
local path = std.split(std.thisFile, "/");
local root = std.join("/", path[0:std.length(path) - 1] + [".."]) + "/";

function(run="runs/ptb_awd") awd + {
  vocabulary: {type: "from_files", directory: root + run + "/vocabulary"},
  model+: {
    initializer: {
      regexes: [[".*", {type: "pretrained", weights_file_path: root + run + "/best.th"}]],
    },
  },
  trainer+: {
    patience: 5,
    callbacks: [
      if std.isObject(c) && c.type == "nt_asgd" then c + {triggered: true} else c
      for c in awd.trainer.callbacks
    ],
  },
}
