"""Small OmniNets that learned text: the models that losses of accuracy are judged on."""
