"""The names of peft, TRL and transformers: their scripts run on lamina with other import lines.

    from lamina.compat.transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from lamina.compat.peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from lamina.compat.trl import SFTConfig, SFTTrainer

They translate settings by the tables of `lamina import`, and warn where lamina differs.
"""
