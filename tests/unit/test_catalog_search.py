"""Finding a system in plain language: questions of users, written before there was a search, and what it forgives."""

from __future__ import annotations

import pytest

#: Question and the right system; more than one only where both are right.
QUESTIONS = [
    ("a very simple model to predict future sensor values, to compare transformers with", "dlinear"),
    ("one network to forecast, fill gaps and find anomalies in data with daily and weekly cycles", "timesnet"),
    ("predict many sensors that influence each other", "tsm2"),
    ("fill in missing measurements without training anything", "linear_interpolation"),
    ("attention for a stream of readings on a small device with fixed memory", "aaren"),
    ("replace softmax so that keys do not compete with each other", "sigmoid_attention"),
    ("classify huge tissue slides when only the diagnosis of the patient is known", "acmil"),
    ("long text generation with a transformer whose memory does not grow", "lightning_attention lightning_attention_2"),
    ("linear attention for long video", "lingen"),
    ("train on one very long sequence split over several GPUs", "lasp2"),
    ("make my existing llm read long prompts faster without retraining", "hip_attention"),
    ("find a passage in a book that is much longer than what the language model was trained on", "landmark_attention"),
    ("each pixel should only look at the pixels around it, in 2D or 3D", "faster_neighborhood_attention dinat"),
    ("cheaper than a transformer, decides from the content what to remember", "mamba"),
    ("the classic recurrent network with a memory cell", "lstm"),
    ("a network that keeps changing its own weights while it reads and recalls facts seen long ago", "titans"),
    ("is state space needed for images or are convolutions enough", "mambaout"),
    ("segment tumors in brain MRI", "swin_unetr"),
    ("learn new classes later without forgetting the old ones, old photos cannot be kept", "gated_class_attention"),
    ("recognise emotions in faces", "se_swin_fer"),
    ("combine pictures of a thermal camera and a normal camera at night", "segmif"),
    ("recognise actions in video on a phone", "squeeze_time"),
    ("when does each action start and end in a long untrimmed recording", "csa"),
    ("search a video by a sentence, no labels for times", "vlanet"),
    ("colour old black and white movies", "colormnet"),
    ("predict the next weather maps from the last ones", "predformer"),
    ("which events can be both heard and seen in a video", "cace_net"),
    ("generate human animation from text and edit it afterwards", "motion_clr"),
    ("recognise what a person does from body joints", "skeleton_1d_cnn"),
    ("optical flow from an event camera", "event_flow"),
    ("stop a spiking network earlier on easy inputs to save energy", "dynamic_confidence"),
    ("control a prosthesis by imagining hand movements", "rleegnet"),
    ("valence and arousal from EEG", "histn"),
    ("explain why a link was predicted in a graph that changes over time", "tempme"),
    ("replace an object in my video, keep the background", "video_director blended_video_editing"),
    ("animate a photo by dragging parts of it", "motion_i2v"),
    ("stop my vision language model from describing objects that are not there", "balanced_visual_attention"),
    ("does a video benchmark really need the order of frames", "tomato"),
    ("where does an image generator spend its time", "beyond_llms"),
    ("ask questions about an hour of video with few tokens", "storm"),
]
#: Written when the search was done, and asked once.
HELD_OUT = [
    ("what is a good dumb baseline for forecasting", "seasonal_naive"),
    ("recognise the same person across cameras", "little_bit_attention"),
    ("where will somebody look next when searching for a product on a shelf", "oat"),
    ("what object will the person wearing the camera touch next", "gano"),
    ("decode what movement somebody saw from fMRI", "dynamic_visual_fmri"),
    ("keep the video from flickering when I edit it frame by frame", "ge_adapter"),
    ("classify spoken words with neurons that learn how long signals take", "snn_delays"),
    ("train on a graph of interactions faster by using larger batches", "pres"),
    ("vision transformer whose windows have different sizes", "vsa"),
    ("find objects in video without any labels", "smtc"),
]


def test_forty_questions():
    assert len(QUESTIONS) == len(dict(QUESTIONS)) == 40
