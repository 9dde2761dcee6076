"""Pictures in, named classes with probabilities out: for a classifier or an ensemble alike."""

from finetune.prediction.answerers import Answerer as Answerer
from finetune.prediction.answerers import SingleClassifier as SingleClassifier
from finetune.prediction.pictures import OnBadImage as OnBadImage
from finetune.prediction.pictures import Picture as Picture
from finetune.prediction.pictures import PictureViews as PictureViews
from finetune.prediction.pictures import find_pictures as find_pictures
from finetune.prediction.predictions import Predictions as Predictions
from finetune.prediction.predictor import predict as predict
