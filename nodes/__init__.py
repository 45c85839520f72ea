"""ComfyUI nodes: schema, unpack, one call, repack."""

from __future__ import annotations

import importlib.util

from . import host, routes
from .demo import digits
from .distillation import distillation, runs
from .distillation.data import folder_data, preview_prompts, training_data
from .distillation.fast import make_it_fast
from .distillation.learning import experts_part, latent_method, matching_method, methods, saving, students
from .distillation.reports import report
from .host import folders, limits
from .sampling import comparison, experts, guidance, lists, model_sampling, recipes, samplers, schedules

NODE_CLASS_MAPPINGS = {
    "FewStepMakeItFast": make_it_fast.MakeItFast,
    "FewStepLCMSampler": samplers.LCMSampler,
    "FewStepLightningSampler": samplers.LightningSampler,
    "FewStepConsistencySampler": samplers.ConsistencySampler,
    "FewStepTCDSampler": samplers.TCDSampler,
    "FewStepAncestralSampler": samplers.AncestralSampler,
    "FewStepSchedule": schedules.Schedule,
    "FewStepApplyRecipe": recipes.ApplyRecipe,
    "FewStepTwoExperts": experts.TwoExperts,
    "FewStepGuidanceEmbedding": guidance.GuidanceEmbedding,
    "FewStepGuidanceDistilledGuider": guidance.GuidanceDistilledGuider,
    "FewStepGuidanceDistilledSampler": guidance.GuidanceDistilledSampler,
    "FewStepLCMModel": model_sampling.LCMModel,
    "FewStepPredictionType": model_sampling.PredictionType,
    "FewStepConsistencyModel": model_sampling.ConsistencyModel,
    "FewStepProgressiveDistillation": methods.ProgressiveDistillation,
    "FewStepGuidanceDistillation": methods.GuidanceDistillation,
    "FewStepConsistencyDistillation": methods.ConsistencyDistillation,
    "FewStepConsistencyTraining": methods.ConsistencyTraining,
    "FewStepScoreDistillation": latent_method.ScoreDistillation,
    "FewStepDistributionMatching": matching_method.DistributionMatching,
    "FewStepExpertsPart": experts_part.ExpertsPart,
    "FewStepLoRAStudent": students.LoRAStudentNode,
    "FewStepFullWeightsStudent": students.FullWeightsStudentNode,
    "FewStepImageFolder": folder_data.ImageFolder,
    "FewStepClipFolder": folder_data.ClipFolderNode,
    "FewStepSoundFolder": folder_data.SoundFolderNode,
    "FewStepTeacherPictures": training_data.TeacherPictures,
    "FewStepTrainingPrompts": training_data.TrainingPrompts,
    "FewStepPreviewPrompts": preview_prompts.PreviewPrompts,
    "FewStepDistill": distillation.Distill,
    "FewStepLoadStudent": students.LoadStudent,
    "FewStepSaveStudent": saving.SaveStudentCheckpoint,
    "FewStepSaveStudentLoRA": saving.SaveStudentLoRA,
    "FewStepWriteRun": runs.WriteRun,
    "FewStepWatchRun": runs.WatchRun,
    "FewStepLossChart": distillation.LossChart,
    "FewStepCompare": comparison.Compare,
    "FewStepStudentReport": report.StudentReport,
    "FewStepDemoTeacher": digits.DemoTeacher,
    "FewStepDigitPrompt": digits.DigitPrompt,
    "FewStepDigitsData": digits.DigitsData,
    "FewStepEvaluateDigits": digits.EvaluateDigits,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "FewStepMakeItFast": "Make It Fast",
    "FewStepLCMSampler": "LCM Sampler (few-step)",
    "FewStepLightningSampler": "Lightning Sampler (few-step)",
    "FewStepConsistencySampler": "Consistency Sampler (few-step)",
    "FewStepTCDSampler": "TCD Sampler (few-step)",
    "FewStepAncestralSampler": "Ancestral Sampler (few-step)",
    "FewStepSchedule": "Few-Step Schedule",
    "FewStepApplyRecipe": "Apply Recipe (few-step)",
    "FewStepTwoExperts": "Two Experts (few-step)",
    "FewStepGuidanceEmbedding": "Guidance Embedding (LCM)",
    "FewStepGuidanceDistilledGuider": "Guidance-Distilled Guider",
    "FewStepGuidanceDistilledSampler": "Guidance-Distilled Sampler",
    "FewStepLCMModel": "LCM Model (few-step)",
    "FewStepPredictionType": "Prediction Type (few-step)",
    "FewStepConsistencyModel": "Consistency Model (few-step)",
    "FewStepProgressiveDistillation": "Progressive Distillation",
    "FewStepGuidanceDistillation": "Guidance Distillation",
    "FewStepConsistencyDistillation": "Consistency Distillation (LCM)",
    "FewStepConsistencyTraining": "Consistency Training (no teacher)",
    "FewStepScoreDistillation": "Score Distillation (latent)",
    "FewStepDistributionMatching": "Distribution Matching (DMD)",
    "FewStepExpertsPart": "One Expert's Part (training)",
    "FewStepLoRAStudent": "LoRA Student",
    "FewStepFullWeightsStudent": "Full-Weights Student",
    "FewStepImageFolder": "Training Images (Folder)",
    "FewStepClipFolder": "Training Clips (Folder)",
    "FewStepSoundFolder": "Training Sounds (Folder)",
    "FewStepTeacherPictures": "Training Prompts (Teacher's Pictures)",
    "FewStepTrainingPrompts": "Training Prompts (No Pictures)",
    "FewStepPreviewPrompts": "Preview Prompts",
    "FewStepDistill": "Distill Model",
    "FewStepLoadStudent": "Load Distilled Student",
    "FewStepSaveStudent": "Save Student as Checkpoint",
    "FewStepSaveStudentLoRA": "Save Student as One LoRA",
    "FewStepWriteRun": "Write Run",
    "FewStepWatchRun": "Watch Run",
    "FewStepLossChart": "Loss Chart",
    "FewStepCompare": "Compare Teacher and Student",
    "FewStepStudentReport": "Student Report",
    "FewStepDemoTeacher": "Demo Teacher (digits)",
    "FewStepDigitPrompt": "Digit Prompt",
    "FewStepDigitsData": "Digits Data Set",
    "FewStepEvaluateDigits": "Evaluate Digits",
}

_OPTIONAL = {"matplotlib": "charts", "sklearn": "the digits data set", "kornia": "PSNR"}


def _say_what_is_missing() -> None:
    missing = [f"{name} ({use})" for name, use in _OPTIONAL.items() if importlib.util.find_spec(name) is None]
    if missing:
        host.models.log.warning(
            "ComfyUI-FewStep: not installed: %s. All else works. To add them: python -m pip install matplotlib "
            "scikit-learn kornia",
            ", ".join(missing),
        )


_say_what_is_missing()
limits.enforce(NODE_CLASS_MAPPINGS)
samplers.add_to_menu()
lists.add_to_menu()
folders.list_own_models()
routes.add_routes()
