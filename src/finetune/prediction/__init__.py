"""Images in, named classes with probabilities out: for a classifier or an ensemble alike."""

from finetune.prediction.inference import predict as predict
from finetune.prediction.inputs import ImageInput as ImageInput
from finetune.prediction.inputs import ImageViews as ImageViews
from finetune.prediction.inputs import find_images as find_images
from finetune.prediction.predictions import Predictions as Predictions
from finetune.spec.choices import OnBadImage as OnBadImage
